"""The machine itself: the same bytes copied, and on the platter.

`python -m bench.baseline_copy FOLDER FILE...` copies files into a folder, one fsync each and one of
the folder, and prints the seconds that it took.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

BLOCK_BYTES = 1 << 20


def main() -> None:
    """Copy, and tell."""
    folder, *files = map(Path, sys.argv[1:])
    began_at = time.monotonic()

    for path in files:
        with path.open("rb", buffering=0) as source, (folder / path.name).open("wb") as target:
            shutil.copyfileobj(source, target, BLOCK_BYTES)
            target.flush()
            os.fsync(target.fileno())

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)
    sys.stdout.write(f"{time.monotonic() - began_at:.6f}\n")


if __name__ == "__main__":
    main()
