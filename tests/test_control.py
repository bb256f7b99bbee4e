"""Commands left for the daemon, as files."""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from crash.mortal import Death, Fate, mortal
from promptspool import control
from promptspool.control import ANSWER, COMMAND, Answer, Command, ControlError
from promptspool.model import JobId
from promptspool.spool import Spool

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_795_000_000.0
PING = Command(verb="ping", left_at=NOW)
NOBODY = 65_534


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """Return a spool that was just made."""
    made = Spool(tmp_path / "spool")
    made.make()

    return made


def names(spool: Spool) -> list[str]:
    """Return the names of what is in the control folder."""
    return sorted(path.name for path in spool.control.iterdir())


def test_a_command_and_its_answer(spool: Spool) -> None:
    """What is left is what waits; an answer takes its place, and is taken once."""
    command = Command(verb="cancel", job=JobId("20261120t231853z-4f7k2m"), left_at=NOW)
    name = control.leave(spool, command)

    assert control.waiting(spool) == [control.Waiting(id=name, command=command)]
    assert control.take_answer(spool, name, within_s=0.0) is None

    said = Answer(is_done=True, message="done")
    control.answer(spool, name, said)

    assert control.waiting(spool) == []
    assert control.take_answer(spool, name, within_s=0.0) == said
    assert names(spool) == []


def test_commands_are_carried_out_in_the_order_in_which_they_were_left(spool: Spool) -> None:
    """The oldest is the first, however many there are."""
    moments = [NOW + seconds for seconds in (3, 1, 2)]

    for moment in moments:
        control.leave(spool, Command(verb="ping", left_at=moment))

    left = [one.command.left_at for one in control.waiting(spool) if one.command is not None]

    assert left == sorted(moments)


def test_many_at_once(spool: Spool) -> None:
    """Commands that are left at one moment are all there, each by itself."""
    threads = [threading.Thread(target=control.leave, args=(spool, PING)) for _ in range(20)]

    for thread in threads:
        thread.start()

    for thread in threads:
        thread.join()

    left = control.waiting(spool)

    assert [one.command for one in left] == [PING] * 20
    assert len({one.id for one in left}) == 20


@pytest.mark.parametrize("after", [False, True])
def test_who_is_killed_leaves_a_whole_command_or_none(tmp_path: Path, *, after: bool) -> None:
    """Death at any step leaves nothing that the daemon would take for a command but is none."""
    outcomes = set()

    for at in range(1, 20):
        spool = Spool(tmp_path / f"spool-{at}")
        spool.make()
        fate = Fate(at=at, after=after)

        try:
            with mortal(fate, spool.root):
                control.leave(spool, PING)
        except Death:
            left = control.waiting(spool)
            outcomes.add(len(left))

            assert [one.command for one in left] in ([], [PING])
            assert all(name.endswith((".part", COMMAND)) for name in names(spool))
        else:
            break

    assert outcomes == {0, 1}  # so it died before the command was there, and after
    assert at > 2


def test_halves_and_answers_that_nobody_takes_are_swept(spool: Spool) -> None:
    """After an hour what is left over goes; what waits to be carried out stays, however old."""
    name = control.leave(spool, PING)
    (spool.control / f"x{COMMAND}.part").write_bytes(b"{")
    (spool.control / f"x{ANSWER}").write_bytes(b"{}")
    (spool.control / "folder.part").mkdir()
    modified = (spool.control / f"x{ANSWER}").stat().st_mtime

    control.sweep(spool, modified + control.ANSWER_KEPT_S - 60.0)
    assert len(names(spool)) == 4

    control.sweep(spool, modified + control.ANSWER_KEPT_S + 60.0)
    assert names(spool) == sorted([f"{name}{COMMAND}", "folder.part"])


def test_garbage_is_no_command(spool: Spool) -> None:
    """What has the name of a command and is none is said to be none; all else is left alone."""
    folder = spool.control
    good = "20261121t000000z-0123456789a"

    for number, data in enumerate(
        [
            b"",
            b"{",
            b"\xff\xfe",
            b"[]",
            b'{"verb": "dance", "left_at": 1}',
            b'{"x": ' + b"[" * 99_999,
        ]
    ):
        (folder / f"{good}{number}{COMMAND}").write_bytes(data)

    (folder / f"{good}a{COMMAND}").mkdir()
    (folder / f"{good}b{COMMAND}").symlink_to("/etc/passwd")
    os.mkfifo(folder / f"{good}c{COMMAND}")
    (folder / f"{'x' * 230}{COMMAND}").write_bytes(b"{}")  # an answer's name would be too long
    (folder / f"evil\x1b]0;\n{COMMAND}").write_bytes(b"{}")
    (folder / os.fsdecode(b"\xff" + COMMAND.encode())).write_bytes(b"{}")
    (folder / "README").write_text("hello")

    left = control.waiting(spool)

    assert [one.id for one in left] == [f"{good}{number}" for number in range(6)]
    assert all(one.command is None and one.fault is not None for one in left)

    for one in left:
        control.answer(spool, one.id, Answer(is_done=False, message=one.fault or ""))

    assert control.waiting(spool) == []


def test_the_daemon_may_read_it_whatever_the_umask(spool: Spool) -> None:
    """A command of somebody with a strict umask can be read by the daemon, who is somebody else."""
    before = os.umask(0o077)

    try:
        name = control.leave(spool, PING)
    finally:
        os.umask(before)

    mode = (spool.control / f"{name}{COMMAND}").stat().st_mode

    assert stat.S_IMODE(mode) == 0o644


def test_a_ping_leaves_nothing_behind(spool: Spool) -> None:
    """A daemon that does not answer is no reason for files that pile up."""
    assert control.ping(spool, within_s=0.0) is None
    assert names(spool) == []


def test_a_spool_that_was_never_made(tmp_path: Path) -> None:
    """Where there is no control folder, it says that this may be the wrong spool."""
    with pytest.raises(ControlError, match="never started on this spool; is it the right one"):
        control.leave(Spool(tmp_path), PING)


def test_who_may_not_command(spool: Spool) -> None:
    """Whoever may not write into the folder is told so, and as whom it can be done."""
    spool.control.chmod(0o500)
    is_root = os.geteuid() == 0

    try:
        if is_root:  # whom no mode keeps out
            os.seteuid(NOBODY)

        with pytest.raises(ControlError, match=r"Permission denied; run this as .*, or as root"):
            control.leave(spool, PING)
    finally:
        if is_root:
            os.seteuid(0)


def test_an_answer_that_cannot_be_read(spool: Spool) -> None:
    """An answer that somebody has damaged is told of with its place."""
    (spool.control / f"x{ANSWER}").write_bytes(b"{")

    with pytest.raises(ControlError, match=f"x{ANSWER}: the answer cannot be read"):
        control.take_answer(spool, "x", within_s=0.0)
