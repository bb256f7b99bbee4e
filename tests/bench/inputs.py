"""Files of prompts, made once and kept: the same for the same kind and size."""

from __future__ import annotations

import csv
import json
from itertools import islice
from typing import TYPE_CHECKING, Literal

from bench.words import sentences

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Kind = Literal["plain", "ids", "csv", "parquet"]
"""JSON lines with a prompt each; the same with a custom_id; tables of id and prompt."""

PROMPT_BYTES = 300
VERSION = 1
"""Another one leaves what was made before alone."""

_GROUP_ROWS = 100_000


def prompts_file(folder: Path, kind: Kind, rows: int, *, length: int = PROMPT_BYTES) -> Path:
    """Return a file of *rows* prompts of about *length* characters, and make it if need be."""
    suffix = kind if kind in ("csv", "parquet") else "jsonl"
    path = folder / f"{kind}-{rows}-{length}-v{VERSION}.{suffix}"

    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        _MAKERS[kind](part, islice(sentences(seed=rows, length=length), rows))
        part.rename(path)

    return path


def _plain(path: Path, prompts: Iterator[str]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)


def _ids(path: Path, prompts: Iterator[str]) -> None:
    with path.open("w") as file:
        file.writelines(
            json.dumps({"custom_id": _id(number), "prompt": prompt}) + "\n"
            for number, prompt in enumerate(prompts)
        )


def _csv(path: Path, prompts: Iterator[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "prompt"))
        writer.writerows((_id(number), prompt) for number, prompt in enumerate(prompts))


def _parquet(path: Path, prompts: Iterator[str]) -> None:
    import pyarrow as pa  # noqa: PLC0415 - large
    from pyarrow import parquet  # noqa: PLC0415

    schema = pa.schema([("id", pa.string()), ("prompt", pa.string())])
    done = 0

    with parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(prompts, _GROUP_ROWS)):
            names = [_id(done + number) for number in range(len(group))]
            writer.write_table(pa.table([names, group], schema=schema))
            done += len(group)


def _id(number: int) -> str:
    return f"ticket-{number:08d}"


_MAKERS = {"plain": _plain, "ids": _ids, "csv": _csv, "parquet": _parquet}
