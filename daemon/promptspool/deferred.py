"""Names of a package that are imported when somebody asks for them.

Raises `AttributeError` (bug) for a name that the package does not have.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def deferred(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return the `__getattr__` of *package* (PEP 562), which has *names* by module.

    No name may be that of a module of the package: the module would come in its place.
    """
    modules = {name: module for module, inside in names.items() for name in inside}

    def found(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")

        value = getattr(import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)  # it is asked for once

        return value

    return found
