"""Remedy: what to do about a batch that was refused before any of it ran.

Pure. Codes are an open set and messages are prose, so both are read; garbage is no complaint.
Raises nothing.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from promptspool.wire import BatchFault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from promptspool.model import Batch

NO_REASON = BatchFault(
    code="batch_failed", message="the provider failed the whole batch and gave no reason"
)

MAX_HALVINGS = 3
"""Eight parts show whether a refusal is about some requests or about all of them."""

MAX_FILE_WAITS = 4
"""20 s and doubling, five minutes: a file just uploaded may be unknown for about two."""

MADE_SMALLER_AT = frozenset({6, 9, 12, 15, 18})
"""After so many waits for room, the first being an hour's worth, it is tried with half as much: a
batch may be larger than all the room that its account has (`batch-apis`, F2)."""

# OpenAI, Azure: "Enqueued token limit reached for ..."; embeddings: "Enqueued request limit ...".
_NO_ROOM_CODES = frozenset({"token_limit_exceeded", "request_limit_exceeded"})
_NO_ROOM = re.compile(r"\benqueued?\b.*\blimit|\blimit\b.*\benqueued?\b", re.IGNORECASE | re.DOTALL)

MAX_LIMIT_DIGITS = 15

_TOO_LARGE_CODES = frozenset({"too_large"})

_FILE_CODES = frozenset({"file_not_found", "input_file_not_found", "file_not_ready"})
_FILE = re.compile(
    r"\bfile\b.*(not (be(en)? )?(found|processed|ready|exist)|n.t exist|no longer exists?|pending)"
    r"|no such file|cannot find .*\bfile\b",
    re.IGNORECASE | re.DOTALL,
)

_CERTAIN_CODES = frozenset(
    {
        "max_age_exceeded",
        "cancelled",
        "model_not_found",
        "model_mismatch",
        "url_mismatch",
        "invalid_url",
        "invalid_endpoint",
        "unsupported_model",
        "deployment_not_found",
    }
)


class Remedy(StrEnum):
    """What becomes of the requests of a refused batch."""

    WAIT = "wait"
    """There was no room: all of it later."""
    WAIT_IN_HALVES = "wait_in_halves"
    """There has been no room for long: later, and half as much at once."""
    SHRINK = "shrink"
    """Too large a file: in halves, as small as it takes."""
    EXCISE = "excise"
    """Some requests are bad: the rest without them."""
    UPLOAD_AGAIN = "upload_again"
    """The file was not to be seen yet: all of it, with a new one."""
    GIVE_UP = "give_up"
    """It will be refused again."""
    HALVE = "halve"
    """Perhaps some of it is bad: in halves, a few times."""


def faults_of(batch: Batch) -> list[BatchFault]:
    """Return what the provider complained of, without what cannot be read."""
    try:
        complaints = msgspec.json.decode(batch.errors or "[]", type=list[msgspec.Raw])
    except msgspec.DecodeError:
        return []

    faults = []

    for complaint in complaints:
        try:
            faults.append(msgspec.json.decode(complaint, type=BatchFault))
        except msgspec.DecodeError:
            continue

    return faults


def remedy(batch: Batch, faults: Sequence[BatchFault]) -> Remedy:
    """Return what to do with *batch*, of which *faults* were complained."""
    codes = {fault.code for fault in faults}

    if codes & _NO_ROOM_CODES or _says(_NO_ROOM, faults):
        is_halved = batch.waits in MADE_SMALLER_AT and batch.requests > 1

        return Remedy.WAIT_IN_HALVES if is_halved else Remedy.WAIT

    if codes & _TOO_LARGE_CODES:
        return Remedy.SHRINK if batch.requests > 1 else Remedy.GIVE_UP

    if named_lines(batch, faults):
        return Remedy.EXCISE

    if batch.reuploads < MAX_FILE_WAITS and (codes & _FILE_CODES or _says(_FILE, faults)):
        return Remedy.UPLOAD_AGAIN

    if codes & _CERTAIN_CODES or batch.requests == 1 or batch.halvings >= MAX_HALVINGS:
        return Remedy.GIVE_UP

    return Remedy.HALVE


_ENQUEUED_LIMIT = re.compile(r"\blimit:?\s+(\d[\d,_.]*)\s+enqueued", re.IGNORECASE)


def enqueued_limit(message: str) -> int | None:
    """Return how many tokens may be enqueued, as a refusal says it; None if this says nothing.

    OpenAI: "Enqueued token limit reached for MODEL in organization ORG. Limit: 90,000 enqueued
    tokens. Please try again once some in_progress batches have been completed."
    """
    found = _ENQUEUED_LIMIT.search(message)
    digits = re.sub(r"\D", "", found[1]) if found else ""

    return int(digits) if 0 < len(digits) <= MAX_LIMIT_DIGITS else None


def is_about_a_file(code: str | None, message: str) -> bool:
    """Tell whether a complaint is that the input file is not there, or not yet (F18)."""
    return code in _FILE_CODES or _FILE.search(message) is not None


def named_lines(batch: Batch, faults: Sequence[BatchFault]) -> dict[int, BatchFault]:
    """Return the first fault of each request that one names, by its place from 0."""
    named: dict[int, BatchFault] = {}

    for fault in faults:
        if fault.line is not None and 1 <= fault.line <= batch.requests:
            named.setdefault(fault.line - 1, fault)

    return named


def _says(pattern: re.Pattern[str], faults: Sequence[BatchFault]) -> bool:
    return any(pattern.search(fault.message or "") for fault in faults)
