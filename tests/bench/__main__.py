"""`python tests/bench`: prints a table of figures, and writes them as JSON."""

from __future__ import annotations

import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(_TESTS), str(_TESTS.parent / "daemon")]

from bench.command import main  # noqa: E402 - found by the line above

if __name__ == "__main__":
    main()
