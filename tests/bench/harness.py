"""What a benchmark is here: trials that run in turn, and figures that are kept, never asserted.

A `Trial` is one piece of work that gives figures for one or several `Case`s of the table. Its
function is called `runs` times, and measures its own baselines each time: so thing and baseline are
measured in turn, within the same minute. What cannot be measured on this machine raises `Skipped`.
A trial that fails is left out like that, and the others go on. Raises nothing else of its own.
"""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

FAILED = "failed:"
"""How the reason begins why a trial was left out that should not have been."""

Extra = Mapping[str, object]
"""Further figures by name, as JSON takes them."""


class Skipped(Exception):
    """Neither this machine nor this run can measure it; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one run of a trial found for one case."""

    value: float
    """In the unit of the case."""
    rss_bytes: int | None = None
    """Peak of the process tree; a page that two processes share counts twice."""
    pss_bytes: int | None = None
    """About the same moment, a shared page counted in shares; None where it was not taken."""
    cpu_s: float | None = None
    """User and system, of the process tree."""
    baselines: Mapping[str, float] = field(default_factory=dict)
    """By name, in the unit of the case."""
    extra: Extra = field(default_factory=dict)
    """Shown in the JSON; of numbers the median is kept too. `longest_block_s` is row 12's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What all runs of a case found."""

    case: Case
    measured: Sequence[Measured]

    @property
    def median(self) -> float:
        """Return the median of the values."""
        return statistics.median(one.value for one in self.measured)

    @property
    def least(self) -> float:
        """Return the smallest value."""
        return min(one.value for one in self.measured)

    @property
    def most(self) -> float:
        """Return the greatest value."""
        return max(one.value for one in self.measured)

    @property
    def rss_bytes(self) -> int | None:
        """Return the highest peak of all runs."""
        found = [one.rss_bytes for one in self.measured if one.rss_bytes is not None]

        return max(found, default=None)

    @property
    def cpu_s(self) -> float | None:
        """Return the median of the CPU seconds."""
        found = [one.cpu_s for one in self.measured if one.cpu_s is not None]

        return statistics.median(found) if found else None

    @property
    def baselines(self) -> dict[str, float]:
        """Return the median of each baseline."""
        names = dict.fromkeys(name for one in self.measured for name in one.baselines)

        return {
            name: statistics.median(
                one.baselines[name] for one in self.measured if name in one.baselines
            )
            for name in names
        }

    @property
    def ratios(self) -> dict[str, float]:
        """Return how many times as good as each baseline: the median of the runs' own ratios."""
        ratios: dict[str, list[float]] = {}

        for one in self.measured:
            for name, other in one.baselines.items():
                pair = (one.value, other) if self.case.better == "more" else (other, one.value)
                ratios.setdefault(name, []).append(pair[0] / pair[1] if pair[1] else 0.0)

        return {name: statistics.median(values) for name, values in ratios.items()}

    @property
    def extra(self) -> dict[str, object]:
        """Return the further figures: the median of numbers, the last of anything else."""
        found: dict[str, object] = {}

        for name in dict.fromkeys(name for one in self.measured for name in one.extra):
            values = [one.extra[name] for one in self.measured if name in one.extra]
            numbers = [one for one in values if isinstance(one, int | float)]
            found[name] = statistics.median(numbers) if len(numbers) == len(values) else values[-1]

        return found

    @property
    def longest_block_s(self) -> float | None:
        """Return the longest block of the event loop in any run, None where it was not probed."""
        found = [one.extra.get("longest_block_s") for one in self.measured]

        return max((one for one in found if isinstance(one, int | float)), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of the table."""

    row: int
    """Its number in the table of goals; 0 for what has no goal."""
    name: str
    unit: str
    """As shown behind the value: "prompts/s", "s", "MB", "ms", "%"."""
    goal: str
    """In words; empty for none."""
    is_met: Callable[[Summary], bool] = lambda _: True
    better: Literal["more", "less"] = "more"
    """Which values are the good ones."""


@dataclass(slots=True, kw_only=True)
class Context:
    """What a trial may use."""

    data: Path
    """A folder outside the repository for inputs that are made once and kept."""
    scratch: Path
    """A folder on the same file system for spools; emptied after each run of a trial."""
    is_small: bool = False
    """Bounded sizes, the whole thing in seconds."""
    scale: float = 1.0
    """Multiplies the sizes that `size` gives."""
    run: int = 0
    """Which run of the trial it is, from 0."""
    results: list[Summary] = field(default_factory=list)
    """Of the trials before this one."""
    say: Callable[[str], None] = print

    def size(self, full: int, small: int) -> int:
        """Return how many of something to use: *small* in a small benchmark."""
        return small if self.is_small else max(1, round(full * self.scale))

    def result(self, row: int, name: str | None = None) -> list[Summary]:
        """Return what was found for a row, or one case of it; empty if it did not run."""
        return [
            one
            for one in self.results
            if one.case.row == row and (name is None or one.case.name == name)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A piece of work that is timed; *run* returns one `Measured` for each case, in order."""

    cases: tuple[Case, ...]
    run: Callable[[Context], Sequence[Measured]]
    runs: int | None = None
    """How often; None for what the command line says."""
    in_small: bool = True
    is_large: bool = False
    """It takes many minutes and much disk, and is left out unless it is asked for."""
    """Part of the small benchmark."""
    needs: tuple[int, ...] = ()
    """The rows whose results it sums up; it runs behind all others."""


def run_trials(
    trials: Sequence[Trial], context: Context, *, runs: int, clear: Callable[[], None]
) -> dict[str, str]:
    """Run *trials* into `context.results`; return, by name of case, why something was skipped.

    *clear* empties the scratch folder after each run.
    """
    skipped: dict[str, str] = {}

    for trial in sorted(trials, key=lambda trial: bool(trial.needs)):
        if context.is_small and not trial.in_small:
            continue

        found: list[Sequence[Measured]] = []
        names = ", ".join(f"{case.row} {case.name}" for case in trial.cases)

        for number in range(trial.runs or runs):
            context.run = number
            began_at = time.monotonic()

            try:
                found.append(trial.run(context))
            except Skipped as error:
                skipped |= {case.name: str(error) for case in trial.cases}
                context.say(f"{names}: skipped: {error}")
                break
            except Exception as error:  # noqa: BLE001 - the others have taken many minutes
                skipped |= {case.name: f"{FAILED} {error!r}" for case in trial.cases}
                context.say(f"{names}: {traceback.format_exc()}")
                break
            finally:
                clear()

            values = " | ".join(
                f"{one.value:,.4g} {case.unit}"
                for case, one in zip(trial.cases, found[-1], strict=True)
            )
            context.say(f"{names}: {values} ({time.monotonic() - began_at:.1f} s in all)")

        if found:
            context.results.extend(
                Summary(case=case, measured=[run[place] for run in found])
                for place, case in enumerate(trial.cases)
            )

    return skipped
