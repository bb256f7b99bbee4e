"""Packages whose names are imported when somebody asks for them."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    "name", ["promptspool.collect", "promptspool.settings", "promptspool.store"]
)
def test_every_name_is_there(name: str) -> None:
    """A package has all that it says it has, and nothing else; a module hides none of it."""
    package = import_module(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}

    assert not modules & set(package.__all__)

    for one in package.__all__:
        assert getattr(package, one) is not None

    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name
