"""Faults on demand: what a provider does wrong, told to it beforehand.

Three kinds. A `Fault` spoils one HTTP exchange; a `BatchFault` decides the fate of a batch at its
creation, a `FileFault` that of an uploaded file. Each matches calls, skips all but its *nth* match,
and wears out after *times* of them. The first that matches wins, in the order they were added.
Nothing here raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import msgspec

from promptspool.simulator.failures import SERVER_ERROR, Failure
from promptspool.simulator.timeline import Ending
from promptspool.simulator.wire import BatchError, Status

if TYPE_CHECKING:
    from promptspool.simulator.inputs import Judge

Route = Literal[
    "files.create",
    "files.list",
    "files.get",
    "files.content",
    "files.delete",
    "batches.create",
    "batches.list",
    "batches.get",
    "batches.cancel",
]
Action = Literal[
    "status",
    "cut",
    "reset",
    "sever",
    "truncate",
    "short",
    "long",
    "drip",
    "bloat",
    "empty",
    "garbage",
    "stall",
]


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="exchange"):
    """One spoiled exchange.

    *nth* counts matching calls from 1 and None takes the first; *times* None never wears out.
    *remote_id* is a file or batch id; *metadata* must be part of the batch's metadata.

    *point* `before` does nothing and fails, `after` does the work and loses the answer. The
    *action* is one of:

    - `status`: with *status*, *body*, *headers*
    - `cut`: the connection ends before the first byte; `reset`: the same with a TCP reset
    - `sever`: a TCP reset when *after_bytes* of the request's body were read, or all of a shorter
      one; does no work
    - `truncate`: the connection ends half-way through the body; does the work
    - `short`: the whole body, then the end, where the head announced more; does the work
    - `long`: the head announces half of the body, and all of it comes; does the work
    - `drip`: the head, then the body byte by byte; does the work
    - `bloat`: *status*, and *body* without end
    - `empty`: 200 without a body; `garbage`: 200 with an HTML page
    - `stall`: only waits; does the work

    *delay_s* is real seconds and comes before any action, `before` or `after` the work; in a `drip`
    it comes before each byte. *status* None is 500 for `status` and 200 for `bloat`.
    """

    route: Route
    nth: int | None = None
    times: int | None = 1
    remote_id: str | None = None
    metadata: dict[str, str] | None = None
    point: Literal["before", "after"] = "before"
    action: Action = "status"
    status: int | None = None
    body: str | None = None
    headers: dict[str, str] = {}
    delay_s: float = 0.0
    after_bytes: int = 4096


class FileFault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="file"):
    """The fate of one uploaded file; *nth* and *times* choose it, as in `Fault`.

    *list_lag_s* hides it from lists and *ready_lag_s* from the creation of batches, each for so
    many virtual seconds.
    """

    nth: int | None = None
    times: int | None = 1
    list_lag_s: float = 0.0
    ready_lag_s: float = 0.0


class BatchFault(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="batch"
):
    """The fate of one batch, decided when it is created.

    *nth*, *times* and *metadata* choose the batch, as in `Fault`. *ending* forces a final
    status, *stuck_in* one that it never leaves, *done* the fraction of requests that ran by
    then, *errors* what a failed batch complains of. *drop* is the fraction of requests in
    neither file; *duplicate* and *foreign* are numbers of extra output lines, repeated or with
    an id nobody sent; *torn_lines* of output lines cut in the middle. *fail_ordinals* are
    requests (from 0) that end in *failure*. *late_file_ids* is the number of retrievals after
    the end that still show no file id; *blank_file_ids* shows `""` for null; *list_lag_s* hides
    the batch from lists for that long; *renamed* maps statuses to what is shown instead. *lines*
    are raw lines at the head of the output file, *cut_last_line* leaves half of its last one and no
    newline. *raw* is laid over the Batch object of every answer but that of its creation (None is
    null), and the fields in *without* are left out of it; both only in the statuses of *raw_in*, if
    it has any.
    """

    nth: int | None = None
    times: int | None = 1
    metadata: dict[str, str] | None = None
    ending: Ending | None = None
    stuck_in: Status | None = None
    done: float = 1.0
    validate_s: float | None = None
    run_s: float | None = None
    errors: list[BatchError] = []
    drop: float = 0.0
    duplicate: int = 0
    foreign: int = 0
    torn_lines: int = 0
    fail_ordinals: frozenset[int] = frozenset()
    failure: Failure = SERVER_ERROR
    errors_in_output: bool = False
    empty_error_file: bool = False
    bare_errors: bool = False
    late_file_ids: int = 0
    blank_file_ids: bool = False
    list_lag_s: float = 0.0
    renamed: dict[str, str] = {}
    lines: list[bytes] = []
    cut_last_line: bool = False
    raw: dict[str, Any] = {}
    without: frozenset[str] = frozenset()
    raw_in: frozenset[Status] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a fault may match on; *remote_id* and *metadata* are None where there is none."""

    route: Route
    remote_id: str | None = None
    metadata: Mapping[str, str] | None = None


When = Callable[[Call], bool]
FaultType = TypeVar("FaultType", Fault, BatchFault, FileFault)


@dataclass(slots=True, kw_only=True)
class _Armed(Generic[FaultType]):
    """A fault with its predicate and how often it matched and struck."""

    fault: FaultType
    when: When | None
    judge: Judge | None = None
    matched: int = 0
    struck: int = 0


class Faults:
    """The script of one simulator."""

    def __init__(self) -> None:
        """Start without faults."""
        self.fired: list[Fault | BatchFault | FileFault] = []
        self._exchanges: list[_Armed[Fault]] = []
        self._batches: list[_Armed[BatchFault]] = []
        self._files: list[_Armed[FileFault]] = []

    def add(self, *faults: Fault, when: When | None = None) -> None:
        """Arm faults of exchanges; *when* must also agree."""
        self._exchanges.extend(_Armed(fault=fault, when=when) for fault in faults)

    def add_batch(
        self, fault: BatchFault, *, when: When | None = None, judge: Judge | None = None
    ) -> None:
        """Arm the fate of a batch; *judge* sees every parsed input line and may fail it.

        The judge runs in a worker thread.
        """
        self._batches.append(_Armed(fault=fault, when=when, judge=judge))

    def add_file(self, fault: FileFault, *, when: When | None = None) -> None:
        """Arm the fate of an uploaded file."""
        self._files.append(_Armed(fault=fault, when=when))

    def clear(self) -> None:
        """Disarm everything; batches and files already there keep their fate."""
        self._exchanges.clear()
        self._batches.clear()
        self._files.clear()

    def take(self, call: Call) -> Fault | None:
        """Return the fault that strikes this call, None if none does."""
        for armed in self._exchanges:
            fault = armed.fault
            is_meant = fault.route == call.route and fault.remote_id in {None, call.remote_id}

            if is_meant and _strikes(armed, fault, call):
                self.fired.append(fault)
                return fault

        return None

    def take_batch(self, call: Call) -> tuple[BatchFault, Judge | None]:
        """Return the fate of the batch that this call creates; a plain one if none is armed."""
        for armed in self._batches:
            if _strikes(armed, armed.fault, call):
                self.fired.append(armed.fault)
                return armed.fault, armed.judge

        return BatchFault(), None

    def take_file(self, call: Call) -> FileFault:
        """Return the fate of the file that this call uploads; a plain one if none is armed."""
        for armed in self._files:
            if _strikes(armed, armed.fault, call):
                self.fired.append(armed.fault)
                return armed.fault

        return FileFault()


def _strikes(armed: _Armed[FaultType], fault: Fault | BatchFault | FileFault, call: Call) -> bool:
    """Count a match and tell whether the fault strikes; a worn-out one matches nothing."""
    if fault.times is not None and armed.struck >= fault.times:
        return False

    if not isinstance(fault, FileFault) and not _is_within(fault.metadata, call.metadata):
        return False

    if armed.when is not None and not armed.when(call):
        return False

    armed.matched += 1

    if fault.nth is not None and armed.matched < fault.nth:
        return False

    armed.struck += 1
    return True


def _is_within(wanted: Mapping[str, str] | None, metadata: Mapping[str, str] | None) -> bool:
    return wanted is None or wanted.items() <= (metadata or {}).items()
