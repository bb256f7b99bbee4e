"""Small Debian systems in folders, for tests that boot one or build on one.

Each is made by debootstrap once and kept in the temporary folder. Needs root, Debian's package
`debootstrap`, and the mirrors that this machine itself is set up for: nothing about them is written
down here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

IS_WANTED = os.environ.get("PROMPTSPOOL_BOOT") == "1"
"""Such tests take minutes, root, and packages from a mirror."""

_PIP_KEYS = frozenset({"cert", "index-url", "proxy", "trusted-host"})


def release() -> str:
    """Return the code name of this machine's own release."""
    text = Path("/etc/os-release").read_text("utf-8")
    found = re.search(r'^VERSION_CODENAME="?(\w+)', text, re.MULTILINE)

    assert found, "this is no release of Debian"

    return found[1]


def made(name: str, packages: Sequence[str]) -> Path:
    """Return the root directory of a Debian release, made if need be; copy it, and leave it so."""
    root = Path(tempfile.gettempdir(), f"promptspool-{name}")

    if not root.exists():
        part = Path(tempfile.mkdtemp(prefix="promptspool-debootstrap-"))
        part.chmod(0o755)
        options = ["--variant=minbase", f"--include={','.join(packages)}"]
        subprocess.run(["debootstrap", *options, name, part, _mirror()], check=True)  # noqa: S603, S607
        _lend_packages(part)
        part.rename(root)

    return root


def _mirror() -> str:
    """Return where this machine has its own release from; others are in the same place."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)"],  # noqa: S607 - Debian's
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()

    return next(line.split()[1] for line in listed if line.split()[0] == release())


def _lend_packages(root: Path) -> None:
    """Have pip in the system at *root* find packages where it finds them here."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found = re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE)
    kept = {key: value for key, value in found if key in _PIP_KEYS}
    lines = [f"{key} = {value}" for key, value in kept.items()]
    (root / "etc/pip.conf").write_text("\n".join(["[global]", *lines, ""]))

    if "cert" in kept:
        (root / kept["cert"].lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(kept["cert"], root / kept["cert"].lstrip("/"))
