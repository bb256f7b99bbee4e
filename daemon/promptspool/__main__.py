"""`python -m promptspool` is the command `promptspool`."""

from __future__ import annotations

from promptspool.cli import main

if __name__ == "__main__":
    main()
