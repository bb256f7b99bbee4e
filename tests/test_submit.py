"""Files that are dropped for somebody."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from commands import COMMAND, LIMIT_S, environ, ids, ran, read_until, simulated, started
from crash.mortal import Death, Fate, mortal
from filled import on_terminal, screen_of
from promptspool.errors import ConfigError, SpoolError
from promptspool.inbox import is_ignored
from promptspool.settings import Settings
from promptspool.spool import Spool
from promptspool.submitting import PART_PREFIX, Source, SubmitError, drop, sources

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CONFIG = """
[providers.openai]
base_url = "https://api.example.com/v1"
[profiles.default]
model = "gpt-5-mini"
[profiles.reviews]
extend = "default"
prompt = "Classify: {{ review }}"
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return the configuration of a spool that was made."""
    Spool(tmp_path / "spool").make()
    profile = {"model": "gpt-5-mini"}

    return Settings.model_validate(
        {
            "spool": {"path": tmp_path / "spool"},
            "providers": {"openai": {"base_url": "https://api.example.com/v1"}},
            "profiles": {"default": profile, "reviews": profile},
        }
    )


def submitted(
    settings: Settings,
    *paths: Path,
    profile: str = "default",
    name: str | None = None,
    stdin: bytes = b"",
) -> list[str]:
    """Drop files, and return what they are called in the inbox."""
    spool = Spool(settings.spool.path)

    with (
        stream(stdin) as pipe,
        sources(settings, list(paths), profile=profile, name=name, stdin=pipe) as found,
    ):
        return [drop(spool, source, profile=profile).name for source in found]


def stream(data: bytes) -> io.BufferedReader:
    """Return a pipe in which *data* waits."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)

    return os.fdopen(reader, "rb")


def inbox(settings: Settings) -> dict[str, bytes]:
    """Return the files of the inbox that the daemon would look at, and what is in them."""
    root = Spool(settings.spool.path).inbox

    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not is_ignored(path.name)
    }


def test_a_copy_is_dropped(settings: Settings, tmp_path: Path) -> None:
    """The inbox gets a copy under the file's name, and the file itself is as before."""
    mine = tmp_path / "may.csv"
    mine.write_bytes(b"prompt\nhello\n")

    assert submitted(settings, mine) == ["may.csv"]
    assert inbox(settings) == {"may.csv": b"prompt\nhello\n"}
    assert (mine.stat().st_nlink, mine.read_bytes()) == (1, b"prompt\nhello\n")


def test_a_profile_is_a_folder(settings: Settings, tmp_path: Path) -> None:
    """A file for a profile goes to its folder, which is made with the inbox's own mode."""
    root = Spool(settings.spool.path).inbox
    root.chmod(0o3775)
    (tmp_path / "may.csv").write_bytes(b"review\ngood\n")
    before = os.umask(0o077)

    try:
        assert submitted(settings, tmp_path / "may.csv", profile="reviews") == ["reviews/may.csv"]
    finally:
        os.umask(before)

    assert inbox(settings) == {"reviews/may.csv": b"review\ngood\n"}
    # Not sticky: the folder is ours, and the daemon is to take files out of it.
    assert stat.S_IMODE((root / "reviews").stat().st_mode) == 0o2775


def test_a_sidecar_goes_along(settings: Settings, tmp_path: Path) -> None:
    """The sidecar beside a file is dropped under the name that the file gets."""
    (tmp_path / "may.csv").write_bytes(b"prompt\nhello\n")
    (tmp_path / "may.csv.toml").write_text('system = "Be brief."')
    (Spool(settings.spool.path).inbox / "may.csv").write_bytes(b"another's")

    assert submitted(settings, tmp_path / "may.csv") == ["may-2.csv"]
    assert inbox(settings) == {
        "may.csv": b"another's",
        "may-2.csv": b"prompt\nhello\n",
        "may-2.csv.toml": b'system = "Be brief."',
    }


@pytest.mark.parametrize("waiting", ["may.csv.gz", "may.csv.gz.toml"])
def test_a_name_that_waits_is_numbered(settings: Settings, tmp_path: Path, waiting: str) -> None:
    """Nothing in the inbox is replaced, and no file gets a sidecar that was not meant for it."""
    (Spool(settings.spool.path).inbox / waiting).write_bytes(b"another's")
    (tmp_path / "may.csv.gz").write_bytes(b"mine")
    names = [submitted(settings, tmp_path / "may.csv.gz")[0] for _ in range(2)]

    assert names == ["may-2.csv.gz", "may-3.csv.gz"]
    assert inbox(settings)[waiting] == b"another's"


def test_many_at_once(settings: Settings, tmp_path: Path) -> None:
    """Files of one name that are dropped at one moment are all there, each with its sidecar."""
    threads = []

    for number in range(12):
        path = tmp_path / f"folder-{number}" / "may.csv"
        path.parent.mkdir()
        path.write_bytes(b"%d" % number)

        if number % 2:
            path.with_name("may.csv.toml").write_text(f'system = "{number}"')

        threads.append(threading.Thread(target=submitted, args=(settings, path)))

    for thread in threads:
        thread.start()

    for thread in threads:
        thread.join()

    found = inbox(settings)
    files = {name: data for name, data in found.items() if name.endswith(".csv")}

    assert sorted(map(int, files.values())) == list(range(12))
    assert {name: data for name, data in found.items() if name not in files} == {
        f"{name}.toml": b'system = "%s"' % data for name, data in files.items() if int(data) % 2
    }


@pytest.mark.parametrize("after", [False, True])
def test_who_is_killed_leaves_a_whole_file_or_none(
    settings: Settings, tmp_path: Path, *, after: bool
) -> None:
    """Death at any step leaves no part of a file in sight, and no file without its sidecar."""
    data, sidecar = b"prompt\n" + b"hello\n" * 1000, b'system = "Be brief."'
    (tmp_path / "may.csv").write_bytes(data)
    (tmp_path / "may.csv.toml").write_bytes(sidecar)
    seen = []

    for at in range(1, 40):
        root = tmp_path / f"spool-{at}"
        Spool(root).make()
        mine = settings.model_copy(
            update={"spool": settings.spool.model_copy(update={"path": root})}
        )

        try:
            with mortal(Fate(at=at, after=after), root):
                submitted(mine, tmp_path / "may.csv")
        except Death:
            found = inbox(mine)
            seen.append(len(found))

            assert found in (
                {},
                {"may.csv.toml": sidecar},
                {"may.csv": data, "may.csv.toml": sidecar},
            )
        else:
            break

    assert set(seen) == {0, 1, 2}
    assert len(seen) > 4


def test_a_name_that_is_taken_meanwhile(settings: Settings, tmp_path: Path) -> None:
    """At whatever step somebody else takes the name, their file gets no sidecar of ours."""
    (tmp_path / "may.csv").write_bytes(b"mine")
    (tmp_path / "may.csv.toml").write_bytes(b'system = "Be brief."')
    ours = {"may.csv": b"mine", "may.csv.toml": b'system = "Be brief."'}
    theirs = {"may.csv": b"theirs", **{name.replace("may", "may-2"): ours[name] for name in ours}}
    outcomes = []

    for at in range(1, 20):
        root = tmp_path / f"spool-{at}"
        Spool(root).make()
        mine = settings.model_copy(
            update={"spool": settings.spool.model_copy(update={"path": root})}
        )
        target = root / "inbox" / "may.csv"
        fate = Fate(at=at, strike=partial(_take, target))

        with mortal(fate, root):
            submitted(mine, tmp_path / "may.csv")

        assert inbox(mine) in (ours, theirs)
        outcomes.append(inbox(mine))

    assert ours in outcomes
    assert theirs in outcomes


def _take(target: Path) -> None:
    if not target.exists():
        target.write_bytes(b"theirs")


def test_what_was_left_half_is_swept(settings: Settings, tmp_path: Path) -> None:
    """The next one to drop something removes half copies of yesterday, and none of now."""
    root = Spool(settings.spool.path).inbox
    old, young = root / f"{PART_PREFIX}old.part", root / f"{PART_PREFIX}young.part"
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (1.0, 1.0))
    (tmp_path / "may.csv").write_bytes(b"prompt\nhello\n")

    submitted(settings, tmp_path / "may.csv")

    assert (old.exists(), young.exists()) == (False, True)


@pytest.mark.parametrize(
    ("mode", "folder", "expected"),
    [
        (0o600, 0o2770, 0o640),
        (0o600, 0o0755, 0o600),
        (0o644, 0o0755, 0o640),
        (0o777, 0o2770, 0o640),
    ],
)
def test_the_daemon_may_read_it(
    settings: Settings, tmp_path: Path, mode: int, folder: int, expected: int
) -> None:
    """Where the inbox is a group's, the group may read what is dropped; nobody else ever may."""
    Spool(settings.spool.path).inbox.chmod(folder)
    (tmp_path / "may.csv").write_bytes(b"prompt\nhello\n")
    (tmp_path / "may.csv").chmod(mode)
    submitted(settings, tmp_path / "may.csv")
    status = (Spool(settings.spool.path).inbox / "may.csv").stat()

    assert stat.S_IMODE(status.st_mode) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops for others")
def test_what_root_drops_is_the_daemons(settings: Settings, tmp_path: Path) -> None:
    """What root drops belongs to the owner of the inbox, who could not read it otherwise."""
    os.chown(Spool(settings.spool.path).inbox, 65_534, 65_533)
    (tmp_path / "may.csv").write_bytes(b"review\ngood\n")
    submitted(settings, tmp_path / "may.csv", profile="reviews")
    folder = Spool(settings.spool.path).inbox / "reviews"

    for path in (folder, folder / "may.csv"):
        assert (path.stat().st_uid, path.stat().st_gid) == (65_534, 65_533)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b' {"prompt": "p"}\n', "stdin.jsonl"),
        (b'\n["p"]', "stdin.json"),
        (b"What is red?\n", "stdin.txt"),
        (b"\xff\xfe", "stdin.txt"),
    ],
)
def test_standard_input(settings: Settings, data: bytes, name: str) -> None:
    """What comes from standard input is called by what it begins with, unless it has a name."""
    assert submitted(settings, Path("-"), stdin=data) == [name]
    assert submitted(settings, Path("-"), stdin=data, name="t.tsv") == ["t.tsv"]
    assert inbox(settings) == {name: data, "t.tsv": data}


def place(tmp_path: Path, kind: str) -> Path:
    """Return something that is no file to be dropped."""
    path = tmp_path / "odd.csv"

    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            return Path("/dev/null")
        case "broken link":
            path.symlink_to(tmp_path / "nowhere")
        case "bad sidecar":
            path.write_bytes(b"prompt\np\n")
            (tmp_path / "odd.csv.toml").write_text("modle = 1")
        case "folder for a sidecar":
            path.write_bytes(b"prompt\np\n")
            (tmp_path / "odd.csv.toml").mkdir()
        case "link for a sidecar":
            path.write_bytes(b"prompt\np\n")
            (tmp_path / "odd.csv.toml").symlink_to(tmp_path / "other.toml")
        case _:
            pass

    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "odd.csv: it cannot be read: No such file or directory"),
        ("folder", "odd.csv: it is a folder; name the files in it"),
        ("pipe", "odd.csv: it is no file; to read a pipe, write - and a --name"),
        ("device", "/dev/null: it is no file"),
        ("broken link", "odd.csv: it cannot be read: No such file or directory"),
        ("bad sidecar", "did you mean 'model'?"),
        ("folder for a sidecar", "odd.csv.toml: Is a directory"),
        ("link for a sidecar", "odd.csv.toml: it is a link; put the file itself there"),
    ],
)
def test_what_cannot_be_dropped(settings: Settings, tmp_path: Path, kind: str, reason: str) -> None:
    """It is said before anything is dropped, also of the files that could be."""
    (tmp_path / "may.csv").write_bytes(b"prompt\nhello\n")

    with pytest.raises(ConfigError) as caught:
        submitted(settings, tmp_path / "may.csv", place(tmp_path, kind))

    assert reason in str(caught.value)
    assert inbox(settings) == {}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a/b.csv", "write a name without folders"),
        ("..", "left alone"),
        (".hidden.csv", "left alone"),
        ("may.csv.part", "left alone"),
        ("may.csv.toml", "left alone"),
        ("", "write a name without folders"),
        ("x" * 250 + ".txt", "the name is too long"),
    ],
)
def test_names_that_would_be_left_alone(
    settings: Settings, tmp_path: Path, name: str, reason: str
) -> None:
    """A name under which the daemon would not take the file is refused."""
    (tmp_path / "may.csv").write_bytes(b"prompt\nhello\n")

    with pytest.raises(ConfigError, match=reason):
        submitted(settings, tmp_path / "may.csv", name=name)

    assert inbox(settings) == {}


def test_wrong_usage(settings: Settings, tmp_path: Path) -> None:
    """An unknown profile, one name for two files, and an empty standard input are refused."""
    (tmp_path / "may.csv").write_bytes(b"prompt\nhello\n")
    mine = tmp_path / "may.csv"

    with pytest.raises(ConfigError, match="no profile 'nope'; known: default, reviews"):
        submitted(settings, mine, profile="nope")

    with pytest.raises(ConfigError, match="it names one file"):
        submitted(settings, mine, mine, name="x.csv")

    with pytest.raises(ConfigError, match="nothing came from standard input"):
        submitted(settings, Path("-"))

    with pytest.raises(ConfigError, match="can be read but once"):
        submitted(settings, Path("-"), Path("-"), stdin=b"x")


def test_an_inbox_that_cannot_be_used(settings: Settings, tmp_path: Path) -> None:
    """A spool that was never made, or a folder that is a link out of it, is told of."""
    (tmp_path / "may.csv").write_bytes(b"prompt\nhello\n")
    root = Spool(settings.spool.path).inbox
    (root / "reviews").symlink_to(tmp_path)

    with pytest.raises(SpoolError, match="reviews is no folder; the daemon looks into no link"):
        submitted(settings, tmp_path / "may.csv", profile="reviews")

    (root / "reviews").unlink()
    root.rmdir()

    with pytest.raises(SpoolError, match="was promptspool ever started on this spool"):
        submitted(settings, tmp_path / "may.csv")


def test_a_file_that_changes_meanwhile(settings: Settings, tmp_path: Path) -> None:
    """What somebody still writes to is not dropped, for it would be neither before nor after."""
    path = tmp_path / "may.csv"
    path.write_bytes(b"prompt\n" + b"hello\n" * 1000)

    class Watched(io.FileIO):
        """A file that somebody else appends to when it is read for the first time."""

        def readinto(self, buffer: WriteableBuffer, /) -> int:
            if self.tell() == 0:
                with path.open("ab") as file:
                    file.write(b"more\n")

            return super().readinto(buffer)

    with io.BufferedReader(Watched(path)) as file:
        source = Source(path=path, file=file, name="may.csv", sidecar=None)

        with pytest.raises(SubmitError, match="changed while it was copied"):
            drop(Spool(settings.spool.path), source, profile="default")

    assert inbox(settings) == {}


# The command.


def submit(
    tmp_path: Path, *arguments: str | Path, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run `promptspool submit` on the spool at *tmp_path*."""
    config = tmp_path / "promptspool.toml"
    config.write_text(CONFIG)
    done = ran("submit", "--config", config, *arguments)

    assert done.returncode == code
    assert "Traceback" not in done.stderr

    return done


def test_the_command_prints_names(settings: Settings, tmp_path: Path) -> None:
    """Names go to standard output, one a line and harmless; remarks to standard error."""
    (tmp_path / "may.csv").write_bytes(b"review\ngood\n")
    evil = tmp_path / "a\x1b]0;x\x07\n\u202e.csv"
    evil.write_bytes(b"review\nbad\n")
    done = submit(
        tmp_path, "--profile", "reviews", tmp_path / "may.csv", tmp_path / "may.csv", evil
    )

    assert done.stdout == (
        "reviews/may.csv\nreviews/may-2.csv\nreviews/a\\x1b]0;x\\x07\\x0a\\u202e.csv\n"
    )
    assert (
        "reviews/may.csv waits in the inbox already; this one is reviews/may-2.csv" in done.stderr
    )
    assert "promptspool does not run; what was dropped is taken at its next start" in done.stderr
    assert len(inbox(settings)) == 3


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    """What is asked for wrongly is one line on standard error, and exit code 2."""
    done = submit(tmp_path, tmp_path / "nope.csv", code=2)

    assert done.stdout == ""
    assert done.stderr == (
        f"promptspool: {tmp_path}/nope.csv: it cannot be read: No such file or directory\n"
    )


def test_the_command_waits_for_the_answers(tmp_path: Path) -> None:
    """What comes through a pipe is answered by the time that the command ends."""
    config = tmp_path / "promptspool.toml"
    config.write_text(CONFIG.replace("[providers", '[spool]\nsettle = "50ms"\n[providers', 1))

    with simulated(speed=6000) as base_url:
        quick = {
            "OPENAI_API_KEY": "sk-simulated",
            "PROMPTSPOOL_POLLING__FIRST": "100ms",
            "PROMPTSPOOL_PROVIDERS__OPENAI__API_KEY_ENV": "OPENAI_API_KEY",
            "PROMPTSPOOL_PROVIDERS__OPENAI__BASE_URL": base_url,
        }

        with started("run", "--config", config, **quick) as daemon:
            read_until(daemon, "daemon.ready")
            done = subprocess.run(  # noqa: S603 - our own command
                [*COMMAND, "submit", "-", "--name", "q.txt", "--wait", "--config", str(config)],
                env=environ(**quick), input="red?\nblue?\n", capture_output=True, text=True,
                timeout=LIMIT_S, check=False,
            )  # fmt: skip

    first, *_, last = done.stdout.splitlines()

    assert (done.returncode, done.stderr, first) == (0, "", "q.txt")
    assert "delivered, 2 answers" in last
    assert ids(tmp_path / "spool" / "outbox" / "q.txt.results.jsonl") == ["q-1", "q-2"]


def test_the_command_reads_a_terminal(settings: Settings, tmp_path: Path) -> None:
    """Prompts may be typed; somebody who is waited for is told so."""
    (tmp_path / "promptspool.toml").write_text(CONFIG)

    with on_terminal("submit", "-", "--config", tmp_path / "promptspool.toml") as terminal:
        terminal.expect_exact("reading prompts from this terminal; Ctrl-D ends them")
        terminal.sendline("red?")
        terminal.sendeof()

        assert "stdin.txt" in screen_of(terminal)

    assert inbox(settings) == {"stdin.txt": b"red?\n"}
