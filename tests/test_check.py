from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from commands import ran
from promptspool.check import checked, told
from promptspool.settings import Settings
from test_files import archive, workbook

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """
[providers.openai]
base_url = "https://api.example.com/v1"
[profiles.default]
model = "gpt-5-mini"
[profiles.reviews]
extend = "default"
prompt = "Classify: {{ review }}"
[profiles.secret]
model = "in-house-1"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a configuration in it, where the command is run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "promptspool.toml").write_text(CONFIG)

    return tmp_path


def check(folder: Path, *arguments: str, code: int) -> str:
    """Run `promptspool check` there; return what it says."""
    done = ran("check", "--config", str(folder / "promptspool.toml"), *arguments)

    assert done.stderr == ""
    assert done.returncode == code
    assert {path.name for path in folder.iterdir() if path.is_dir()} <= {"spool"}

    return done.stdout


def test_a_file_is_shown_as_it_would_be_submitted(folder: Path) -> None:
    """Format, rows, batches, tokens, cost and the first request in full; nothing is submitted."""
    rows = "".join(f"{n};good value {n}\n" for n in range(5000))
    (folder / "may.csv").write_text(f"id;review\n{rows}")

    said = check(folder, "--profile", "reviews", "may.csv", code=0)
    request = json.loads(said.partition("the first request:")[2])

    assert "may.csv: csv, 5,000 rows, profile reviews (openai, /v1/chat/completions)" in said
    assert "delimiter: ;" in said
    assert "5,000 requests in 1 batch, " in said
    assert "tokens in and 1,000,000 out; about $" in said
    assert "too small" not in said
    assert request["body"]["messages"] == [{"role": "user", "content": "Classify: good value 0"}]
    assert not (folder / "spool").exists()


def test_bad_rows_are_shown_and_counted(folder: Path) -> None:
    """Twenty bad rows are shown with line and key, all are counted, and the exit code is 1."""
    (folder / "a.jsonl").write_text('{"prompt": "p"}\n' + '{"prompt": 7, "messages": 7}\n' * 30)

    said = check(folder, "a.jsonl", code=1)

    assert "1 request in 1 batch" in said
    assert "30 rows would become errors:" in said
    assert said.count("\n    line ") == 20
    assert "and 10 more" in said


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("may.csv", workbook(), "rename it to may.xlsx"),
        ("a.jsonl", b'{"id": 1, "prompt": "p"}\n' * 2, "line 2: the id '1' is that of line 1"),
        ("a.zip", archive({"a/": b""}), "no files"),
        ("x" * 250 + ".txt", b"p\n", "the name is too long"),
    ],
)
def test_what_would_be_rejected(folder: Path, name: str, data: bytes, reason: str) -> None:
    """A file that would be rejected is told with the reason, and the exit code is 1."""
    (folder / name).write_bytes(data)

    said = check(folder, name, code=1)

    assert "would be rejected (profile default)" in said
    assert reason in said


def test_a_small_file_is_not_worth_a_batch(folder: Path) -> None:
    """A file whose batch saves next to nothing is told so, and is no error."""
    (folder / "a.txt").write_text("one\ntwo\n")

    assert "too small to be worth a batch" in check(folder, "a.txt", code=0)
    assert "its price is not known" in check(folder, "--profile", "secret", "a.txt", code=0)


@pytest.mark.parametrize(
    ("model", "told_price"),
    [
        ("gpt-5-mini", r"about \$0\.0\d+ as a batch, \$0\.0\d+ at .* \(prices of [\d-]{10}\)"),
        ("text-embedding-3-small", r"at most \$0\.0\d+ as a batch, .* \(prices of [\d-]{10}\)"),
        ("in-house-1", r"its price is not known"),
        ("own", r"about \$\d+\.\d+ as a batch, \$\d+\.\d+ at .* \(prices of 2026-01-31\)"),
        ("undated", r"about \$\d+\.\d+ as a batch, \$\d+\.\d+ at .* \(undated prices\)"),
    ],
)
def test_a_cost_is_told_for_what_it_is(folder: Path, model: str, told_price: str) -> None:
    """An estimate, of which day, at most where no batch price is known, and unknown if it is."""
    (folder / "a.jsonl").write_text('{"prompt": "Why is the sky dark?"}\n' * 500)
    configured = Settings.model_validate(
        {
            "providers": {"openai": {"base_url": "https://api.openai.com/v1"}},
            "profiles": {"default": {"model": model, "answer_tokens": 30}},
            "prices": {
                "own": {"input": 1_000, "output": 1_000, "as_of": "2026-01-31"},
                "undated": {"input": 1_000, "output": 1_000},
            },
        }
    )
    found = checked(configured, folder / "a.jsonl", profile=None)
    said = "\n".join(told(found))

    assert re.search(rf"\n  {model}: about 8,333 tokens in and 15,000 out; {told_price}\n", said)
    assert "an estimate: 3 bytes a token, 30 tokens an answer that is not limited" in said
    assert "too small" not in said


def test_sidecar_and_inbox_folder_count(folder: Path) -> None:
    """A file in the inbox has that folder's profile, and a sidecar beside it is laid over it."""
    inbox = folder / "spool" / "inbox" / "reviews"
    inbox.mkdir(parents=True)
    (inbox / "may.csv").write_text("review\ngood\n")
    (inbox / "may.csv.toml").write_text(
        'params = { max_completion_tokens = 5 }\nsystem = "Be brief."'
    )

    said = check(folder, str(inbox / "may.csv"), code=0)

    assert "profile reviews with may.csv.toml" in said
    assert "tokens in and 5 out" in said
    assert '"max_completion_tokens": 5' in said
    assert '"Be brief."' in said

    (inbox / "may.csv.toml").write_text("modle = 1")

    assert "did you mean 'model'?" in check(folder, str(inbox / "may.csv"), code=1)


def test_a_schema_is_told_of(folder: Path) -> None:
    """Structured outputs are strict where the schema allows it, and else it says why not."""
    (folder / "loose.json").write_text(
        '{"type": "object", "properties": {"a": {"type": "string"}}}'
    )
    (folder / "promptspool.toml").write_text(
        CONFIG + '[profiles.loose]\nmodel = "gpt-5-mini"\nresponse_schema = "loose.json"\n'
    )
    (folder / "a.txt").write_text("one\n")

    said = check(folder, "--profile", "loose", "a.txt", code=0)

    assert "structured outputs: not strict: " in said
    assert '"json_schema"' in said


def test_a_file_that_is_not_there(folder: Path) -> None:
    """What cannot be read at all is a mistake of usage, told in one line."""
    (folder / "folder.csv").mkdir()
    expected = {"nope.csv": "there is no such file", "folder.csv": "no file"}

    for name, reason in expected.items():
        done = ran("check", "--config", str(folder / "promptspool.toml"), name)

        assert done.returncode == 2
        assert done.stderr == f"promptspool: {name}: {reason}\n"
