"""`python -m promptspool.simulator --port 8080 --speed 3600`."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from promptspool.simulator.command import simulate


def main() -> None:
    """Read the command line and serve."""
    parser = ArgumentParser(prog="promptspool.simulator")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--api-key", default="sk-simulated")
    parser.add_argument("--directory", type=Path, default=None)
    simulate(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
