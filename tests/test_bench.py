from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from bench.answers import make_output
from bench.baseline_tutorial import build, create, merge, poll
from bench.command import trials, wanted
from bench.harness import FAILED, Case, Context, Measured, Skipped, Summary, Trial, run_trials
from bench.inputs import prompts_file
from bench.plots import plot, slope
from bench.remote import provided
from bench.table import document, lines_of, merged, shown, write_readme
from bench.watched import Watched

if TYPE_CHECKING:
    from collections.abc import Callable

BENCH = Path(__file__).parent / "bench"

ROWS = set(range(1, 16))
"""All that have a goal."""

LIMIT_S = 300
"""Real time, against hangs."""


def test_the_small_benchmark_gives_a_figure_for_every_row(tmp_path: Path) -> None:
    """Every row of the table has a figure above zero, and the JSON is whole."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(BENCH), "--small", "--data", str(tmp_path / "data")]
    done = subprocess.run(  # noqa: S603 - our own command
        [*command, "--json", str(figures), "--plots", str(tmp_path / "plots")],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert done.returncode == 0, done.stderr

    found = json.loads(figures.read_text())
    rows = {one["row"] for one in found["rows"]}

    assert found["skipped"] == {}
    assert rows >= ROWS
    assert all(one["least"] <= one["median"] <= one["most"] for one in found["rows"])
    assert all(one["median"] >= 0 for one in found["rows"])
    assert {one["name"] for one in found["rows"]} <= set(_names(done.stdout))
    assert [ET.parse(path) for path in (tmp_path / "plots").iterdir()]  # noqa: S314 - our own


def _names(table: str) -> list[str]:
    """Return what is in the column of the work, whose place the head shows."""
    head, *lines = table.splitlines()
    start, end = head.index("work"), head.index("goal")

    return [line[start:end].strip() for line in lines]


def test_rows_that_sum_up_bring_what_they_sum_up() -> None:
    """Who asks for a row gets its figure, whatever else has to run for it."""
    rows = {case.row for trial in wanted(trials(), [12]) for case in trial.cases}

    assert {12, 1, 3, 4, 6, 7, 11} <= rows
    assert {case.row for trial in wanted(trials(), [6]) for case in trial.cases} == {6}


def _case(**changes: object) -> Case:
    plain: dict[str, object] = {"row": 1, "name": "work", "unit": "s", "goal": "", "better": "less"}

    return Case(**{**plain, **changes})  # type: ignore[arg-type] # each test knows its own


def test_a_ratio_says_how_many_times_as_good_a_run_was() -> None:
    """Above one is better than the baseline, whether much or little is good."""
    runs = [
        Measured(value=value, baselines={"other": other})
        for value, other in ((1.0, 2.0), (2.0, 8.0), (4.0, 12.0))
    ]

    assert Summary(case=_case(), measured=runs).ratios == {"other": 3.0}
    assert Summary(case=_case(better="more"), measured=runs).ratios == {"other": 1 / 3}


def test_a_summary_has_median_and_peaks() -> None:
    """Time is the median of the runs; memory is the highest of them."""
    runs = [
        Measured(value=value, rss_bytes=rss, cpu_s=value, extra={"longest_block_s": value / 10})
        for value, rss in ((3.0, 5), (1.0, 9), (2.0, 7))
    ]
    found = Summary(case=_case(), measured=runs)

    assert (found.median, found.least, found.most) == (2.0, 1.0, 3.0)
    assert (found.rss_bytes, found.cpu_s, found.longest_block_s) == (9, 2.0, 0.3)


def test_what_cannot_be_measured_is_told(tmp_path: Path) -> None:
    """A row that cannot be measured, or fails, is in the table with the reason; others go on."""

    def skip(_context: Context) -> list[Measured]:
        raise Skipped("there is no curl")

    def fail(_context: Context) -> list[Measured]:
        raise RuntimeError("the daemon did not get there")

    context = Context(data=tmp_path, scratch=tmp_path, say=lambda _: None)
    works: dict[str, Callable[[Context], list[Measured]]] = {
        "skips": skip,
        "fails": fail,
        "runs": lambda _: [Measured(value=1.0)],
    }
    trials = [Trial(cases=(_case(name=name),), run=run) for name, run in works.items()]
    skipped = run_trials(trials, context, runs=2, clear=lambda: None)
    shown = {line[1]: line for line in lines_of(_document(context.results, skipped))}

    assert "there is no curl" in shown["skips"]
    assert skipped["fails"].startswith(FAILED)
    assert "1.00 s" in shown["runs"]


def _summary(value: float, *, name: str = "work") -> Summary:
    return Summary(case=_case(name=name), measured=[Measured(value=value)])


def _document(results: list[Summary], skipped: dict[str, str] | None = None) -> dict[str, Any]:
    return document(results, skipped or {}, machine={}, is_small=False, seconds=1.0)


def test_rows_that_are_not_measured_again_stay() -> None:
    """Single rows can be measured again: theirs are replaced, all others kept."""
    earlier = _document([_summary(1.0, name="a"), _summary(1.0, name="b")], {"c": "no curl"})
    both = merged(earlier, _document([_summary(2.0, name="b"), _summary(2.0, name="c")]))

    assert {one["name"]: one["median"] for one in both["rows"]} == {"a": 1.0, "b": 2.0, "c": 2.0}
    assert not both["skipped"]
    assert merged(earlier, _document([_summary(2.0, name="b")]))["skipped"] == {"c": "no curl"}


def test_the_readme_keeps_all_but_its_table(tmp_path: Path) -> None:
    """Only what is between the marks is replaced, however often."""
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n")
    lines = lines_of(_document([_summary(2.0)]))
    write_readme(readme, lines, {"cores": "2"})
    once = readme.read_text()
    write_readme(readme, lines, {"cores": "2"})

    assert readme.read_text() == once
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "| work |" in once
    assert "old" not in once


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234567.0, "1,230,000"), (12.345, "12.3"), (0.0012345, "0.00123"), (1.0, "1.00")],
)
def test_numbers_are_shown_with_three_digits(value: float, text: str) -> None:
    """Three digits count, and no more are shown."""
    assert shown(value) == text


def test_growth_is_the_exponent() -> None:
    """What grows with the square has exponent two; what does not grow, none."""
    assert slope([(1.0, 7.0), (10.0, 1.0), (100.0, 100.0)]) == pytest.approx(2.0)
    assert slope([(1.0, 3.0), (10.0, 3.0)]) == 0.0


def test_a_plot_is_drawn_within_its_frame() -> None:
    """Every point and name of a plot is where it can be seen."""
    picture = plot(
        "title <&>",
        x_label="rows",
        y_label="seconds",
        series={"one": [(1.0, 0.002), (1e6, 30.0)], "two": [(1.0, 0.002), (1e6, 29.0)]},
    )
    root = ET.fromstring(picture)  # noqa: S314 - our own
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    circles = [one.attrib for one in root.iter() if one.tag.endswith("circle")]
    heights = [float(one.attrib["y"]) for one in root.iter() if one.text in ("one", "two")]

    assert len(circles) == 4
    assert all(
        0 <= float(one["cx"]) <= width and 0 <= float(one["cy"]) <= height for one in circles
    )
    assert abs(heights[0] - heights[1]) >= 13


def test_the_same_input_is_made_once(tmp_path: Path) -> None:
    """A file of prompts is what its name says, and is not made again."""
    path = prompts_file(tmp_path, "ids", 100)
    made = path.stat().st_mtime_ns
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    lengths = [len(row["prompt"]) for row in rows]

    assert prompts_file(tmp_path, "ids", 100).stat().st_mtime_ns == made
    assert len({row["custom_id"] for row in rows}) == len(rows) == 100
    assert 280 <= sum(lengths) / len(lengths) <= 320


def test_there_is_one_answer_to_each_request_in_another_order(tmp_path: Path) -> None:
    """Output files hold each id once, shuffled, in lines of about 1 KB."""
    ids = [f"job-{number}" for number in range(200)]
    source, output = tmp_path / "requests", tmp_path / "output"
    source.write_text("".join(json.dumps({"custom_id": one, "body": {}}) + "\n" for one in ids))
    count = make_output(source, output)
    found = [json.loads(line)["custom_id"] for line in output.read_text().splitlines()]

    assert count == 200
    assert found != ids
    assert sorted(found) == sorted(ids)
    assert 900 <= output.stat().st_size / 200 <= 1_200


def test_the_provider_counts_what_it_is_asked(tmp_path: Path) -> None:
    """A route that was answered so often as is waited for wakes whoever waits."""
    with provided(folder=tmp_path) as provider:
        (first, second) = provider.tell(
            "put", batches=[{"input_file_id": "file", "requests": 1}] * 2
        )["ids"]
        provider.finish([second])
        finished = [one["finished_at"] is not None for one in provider.batches()]

        assert finished == [False, True]
        assert first != second
        assert provider.counts() == {}
        assert provider.cpu_s > 0

    assert list(tmp_path.iterdir()) == []


def test_the_tutorial_gets_its_answers(tmp_path: Path) -> None:
    """What is uploaded comes back answered, each request once and in the order of the input."""
    source = prompts_file(tmp_path / "data", "plain", 50)
    remote = tmp_path / "remote"
    remote.mkdir()

    with provided(folder=remote, is_held=False) as provider:
        content, ids = build(source, tmp_path)
        batch = poll(provider.base_url, create(provider.base_url, content))
        address = f"{provider.base_url}/files/{batch['output_file_id']}/content"

        with urllib.request.urlopen(address) as answer:  # noqa: S310 - our own address
            merge(answer.read(), ids, tmp_path)

        counts = provider.counts()

    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]

    assert [one["custom_id"] for one in results] == ids
    assert (counts["upload"], counts["create"], counts["download"]) == (1, 1, 1)


def test_a_process_is_watched_with_its_children(tmp_path: Path) -> None:
    """Memory and CPU seconds of a child count as those of its parent."""
    child = "x = bytearray(60_000_000); sum(range(3_000_000)); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    out = tmp_path / "out"
    command = [sys.executable, "-c", f"print('there', flush=True); {parent}"]

    with Watched(command, output=out) as watched:
        code = watched.process.wait(LIMIT_S)
        usage = watched.lap()

    assert code == 0
    assert out.read_text() == "there\n"
    assert usage.rss_bytes > 60_000_000
