"""The service on a machine of its own, set up by the commands of systemd/README.md.

Opt-in, since it takes minutes and root: PROMPTSPOOL_BOOT=1 python -m pytest -n 0 tests/test_boot.py
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from booted import CLONE, Machine, booted
from commands import ROOT
from debian import IS_WANTED

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not IS_WANTED, reason="PROMPTSPOOL_BOOT=1 boots a machine for it")

KEY = "sk-simulated"
SPEED = 600
INBOX = "/srv/prompts/inbox"
OUTBOX = "/srv/prompts/outbox"
CAP_LEASE = 28


@pytest.fixture(scope="module")
def port() -> int:
    """Return a port for the simulated provider: the machine has its network in common with us."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        number: int = server.getsockname()[1]

    return number


@pytest.fixture(scope="module")
def machine(port: int) -> Iterator[Machine]:
    """Boot a machine, and install and start the service as the README says.

    But for a drop-in, with which the provider is a simulated one and nothing takes long.
    """
    with booted() as machine:
        machine.say("useradd -m alice && useradd -m bob")
        machine.say(
            "install -D -m 644 /dev/stdin /etc/systemd/system/promptspool.service.d/quick.conf",
            stdin=f"""[Service]
                RestartSec=100ms
                WatchdogSec=3s
                Environment=PROMPTSPOOL_PROVIDERS__OPENAI__BASE_URL=http://127.0.0.1:{port}/v1
                Environment=PROMPTSPOOL_POLLING__FIRST=200ms PROMPTSPOOL_POLLING__CAP=500ms
                Environment=PROMPTSPOOL_PROVIDERS__OPENAI__LOOKUP_GRACE=1s
                Environment=PROMPTSPOOL_SPOOL__SETTLE=200ms
            """,
        )
        follow(machine, "Install", stdin=f"{KEY}\n")
        machine.say(
            f"systemd-run --quiet --unit=simulator --property=DynamicUser=yes "
            f"promptspool simulate --port {port} --speed {SPEED} --api-key {KEY}"
        )
        yield machine


def follow(machine: Machine, heading: str, *, stdin: str = "") -> None:
    """Run the commands below a heading of the README."""
    text = (ROOT / "systemd/README.md").read_text("utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)

    assert blocks
    machine.say("\n".join([f"cd {CLONE}", *blocks]), stdin=stdin)


def results(machine: Machine, name: str, *, user: str = "alice") -> list[str]:
    """Return the ids of the results of a dropped file, as *user* reads them."""
    lines = machine.say(f"cat {OUTBOX}/{name}.results.jsonl", user=user).splitlines()

    return [json.loads(line)["custom_id"] for line in lines]


def assert_bought_once(port: int) -> None:
    """Hold that the provider made no batch of ours twice."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/batches?limit=100", headers={"Authorization": f"Bearer {KEY}"}
    )

    with urllib.request.urlopen(request) as answer:  # noqa: S310 - the simulated provider
        batches = json.load(answer)["data"]

    made = Counter(batch["metadata"]["promptspool_batch"] for batch in batches)

    assert made
    assert {batch: count for batch, count in made.items() if count > 1} == {}


def test_it_is_started(machine: Machine) -> None:
    """The README's commands leave a service that runs, is ready, and starts at the next boot."""
    assert machine.say("systemctl is-active promptspool; systemctl is-enabled promptspool") == (
        "active\nenabled"
    )
    assert machine.shown("NRestarts") == "0"


def test_members_drop_and_read(machine: Machine) -> None:
    """Whatever umask a member has, files and folders come back, readable to members alone."""
    with machine.journal() as journal:
        machine.say(
            f"umask 077; mkdir {INBOX}/default; echo red? > {INBOX}/default/colours.txt; "
            f"cp /etc/hostname {INBOX}/names.txt; printf 'prompt\nblue?\n' > {INBOX}/table.csv",
            user="alice",
        )

        for _ in range(3):
            journal.event("job.delivered")

    read = machine.say(f"find {OUTBOX} -type f -exec cat {{}} + | wc -l", user="alice")

    assert results(machine, "default/colours.txt") == ["colours-1"]
    assert int(read) > 0
    assert machine.run("ls", "/srv/prompts", user="bob").returncode != 0
    assert machine.run("ls", "/srv/prompts/working", user="alice").returncode != 0
    assert machine.run("sh", "-c", f"> {OUTBOX}/table.csv.summary.json", user="alice").returncode
    assert machine.run("ls", "/var/lib/promptspool", user="bob").returncode != 0


def test_state_is_elsewhere(machine: Machine) -> None:
    """The database is in /var/lib/promptspool, and nothing of it in the spool."""
    assert machine.say("stat -c '%U %a' /var/lib/promptspool/promptspool.db") == "promptspool 640"
    assert machine.run("ls", "/srv/prompts/state").returncode != 0


def test_privileges_are_dropped(machine: Machine) -> None:
    """It runs as its user with one capability, and can win no other."""
    status = machine.say(f"cat /proc/{machine.shown('MainPID')}/status")
    fields = dict(re.findall(r"^(\w+):\s*(.*)$", status, re.MULTILINE))
    user = machine.say("id -u promptspool")

    assert fields["Uid"].split() == [user] * 4
    assert fields["Groups"].split() == [machine.say("id -g promptspool")]
    assert {int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {
        1 << CAP_LEASE
    }
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


@pytest.mark.parametrize(
    "folder", ["/etc", "/usr", "/opt/promptspool", "/srv", "/var/log", "/home"]
)
def test_nothing_else_is_written(machine: Machine, folder: str) -> None:
    """Not even root could write elsewhere in what the service sees of the machine."""
    inside = ("nsenter", "--target", machine.shown("MainPID"), "--mount", "touch")
    refused = machine.run(*inside, f"{folder}/probe")

    assert machine.run(*inside, "/var/lib/promptspool/probe").returncode == 0
    assert "Read-only file system" in refused.stderr


def test_the_key_is_for_the_service_alone(machine: Machine) -> None:
    """The key is in no environment, and no file that others may read."""
    seen = f"tr '\\0' '\\n' < /proc/{machine.shown('MainPID')}/environ"

    assert KEY not in machine.say(seen)
    assert machine.say("stat -c %a /etc/promptspool/openai.key") == "600"
    assert machine.run("cat", "/etc/promptspool/openai.key", user="alice").returncode != 0


def test_a_copy_that_stalls_is_not_claimed(machine: Machine) -> None:
    """A file of somebody else's is left alone for as long as it is open for writing."""
    writer = machine.command(
        "sh", "-c",
        f"exec 3> {INBOX}/slow.txt; echo one >&3; echo written; read go; echo two >&3",
        user="alice",
    )  # fmt: skip

    with (
        machine.journal() as journal,
        subprocess.Popen(  # noqa: S603 - on a machine of our own
            writer, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"

        machine.say(f"echo three > {INBOX}/later.txt", user="alice")
        journal.event("job.delivered", file="later.txt")

        assert machine.say(f"cat {INBOX}/slow.txt") == "one"

        process.communicate("go\n")
        journal.event("job.delivered", file="slow.txt")

    assert results(machine, "slow.txt") == ["slow-1", "slow-2"]


def test_a_kill_costs_only_time(machine: Machine, port: int) -> None:
    """A process that is killed is started again and delivers what it had under way, bought once."""
    before = machine.shown("MainPID")

    with machine.journal() as journal:
        machine.say(f"printf 'one\ntwo\n' > {INBOX}/killed.txt", user="alice")
        journal.until('"event":"batch.created"')
        machine.say(f"kill -9 {before}")
        journal.event("daemon.ready")
        journal.event("job.delivered", file="killed.txt")

    assert machine.shown("MainPID") != before
    assert results(machine, "killed.txt") == ["killed-1", "killed-2"]
    assert_bought_once(port)


def test_a_hung_loop_is_ended_and_started_again(machine: Machine, port: int) -> None:
    """The watchdog ends a daemon that hangs, says where it did, and the next one goes on."""
    with machine.journal() as journal:
        machine.say(f"printf 'one\ntwo\n' > {INBOX}/hung.txt", user="alice")
        journal.until('"event":"batch.created"')
        machine.say(f"kill -STOP {machine.shown('MainPID')}")
        journal.until("Watchdog timeout")
        journal.until("most recent call first")
        journal.event("daemon.ready")
        journal.event("job.delivered", file="hung.txt")

    assert results(machine, "hung.txt") == ["hung-1", "hung-2"]
    assert_bought_once(port)


def test_an_idle_daemon_lives_on(machine: Machine) -> None:
    """A daemon that has nothing to do says that it is alive, for longer than the watchdog waits."""
    before = machine.shown("MainPID")
    machine.say("systemd-run --quiet --wait --property=Type=oneshot sleep 7")

    assert machine.shown("MainPID") == before
    assert machine.shown("StatusText") == "idle"


def test_reload(machine: Machine) -> None:
    """A reload takes over a new profile without another start; a broken file is left alone."""
    before = machine.shown("MainPID")
    profile = '\n[profiles.second]\nmodel = "gpt-5-nano"\n'
    machine.say(
        "cat >> /etc/promptspool/promptspool.toml; systemctl reload promptspool", stdin=profile
    )

    with machine.journal() as journal:
        machine.say(f"mkdir {INBOX}/second; echo one > {INBOX}/second/new.txt", user="alice")
        journal.event("job.delivered", file="second/new.txt")

    machine.say("cp /etc/promptspool/promptspool.toml /tmp/before.toml")
    machine.say("echo '[nonsense]' >> /etc/promptspool/promptspool.toml")
    machine.run("systemctl", "reload", "promptspool")

    with machine.journal() as journal:
        machine.say(f"echo one > {INBOX}/second/newer.txt", user="alice")
        journal.event("job.delivered", file="second/newer.txt")

    assert machine.shown("MainPID") == before

    machine.say("cp /tmp/before.toml /etc/promptspool/promptspool.toml")


def test_members_look_and_root_commands(machine: Machine) -> None:
    """The group sees how it is, whether the daemon runs or not; only root tells it what to do."""
    assert machine.run("promptspool", "status", user="alice").stdout.startswith("promptspool")
    assert machine.run("promptspool", "pause", user="alice").returncode != 0
    assert machine.run("promptspool", "pause").returncode == 0
    assert machine.run("promptspool", "resume").returncode == 0

    machine.say("systemctl stop promptspool")
    down = machine.run("promptspool", "status", user="alice")
    machine.say("systemctl start promptspool")

    assert down.stdout.startswith("promptspool"), down.stderr


def test_the_doctor_finds_nothing_wrong(machine: Machine) -> None:
    """What the README installs has nothing that `doctor` would mend."""
    found = machine.run("env", "CREDENTIALS_DIRECTORY=/run/credentials/promptspool.service",
                        "promptspool", "doctor", "--offline")  # fmt: skip

    assert found.returncode == 0, found.stdout + found.stderr


def test_a_key_is_replaced(machine: Machine) -> None:
    """A key that is refused pauses; the next start takes the new one and finishes the work."""
    write = "install -m 600 /dev/stdin /etc/promptspool/openai.key; systemctl restart promptspool"

    with machine.journal() as journal:
        machine.say(write, stdin="sk-revoked\n")
        machine.say(f"echo one > {INBOX}/key.txt", user="alice")
        journal.event("provider.paused")
        machine.say(write, stdin=f"{KEY}\n")
        journal.event("job.delivered", file="key.txt")

    assert results(machine, "key.txt") == ["key-1"]


def test_a_faulty_configuration_is_not_tried_again(machine: Machine) -> None:
    """A start with a broken configuration fails once and says why."""
    machine.say(
        "systemctl stop promptspool; cp /etc/promptspool/promptspool.toml /tmp/before.toml; "
        "echo '[nonsense]' >> /etc/promptspool/promptspool.toml"
    )

    with machine.journal() as journal:
        assert machine.run("systemctl", "start", "promptspool").returncode != 0
        journal.until("nonsense")

    assert (machine.shown("ExecMainStatus"), machine.shown("ActiveState")) == ("2", "failed")

    machine.say("cp /tmp/before.toml /etc/promptspool/promptspool.toml")
    machine.say("systemctl reset-failed promptspool; systemctl start promptspool")


def test_stop_is_graceful(machine: Machine) -> None:
    """A stop ends it by its own word, and the next start knows that nothing was cut off."""
    with machine.journal() as journal:
        machine.say("systemctl stop promptspool")
        journal.event("daemon.stopped")

    assert (machine.shown("Result"), machine.shown("ExecMainStatus")) == ("success", "0")

    with machine.journal() as journal:
        machine.say("systemctl start promptspool")
        journal.event("daemon.booted", clean_stop=True)


def test_a_spool_elsewhere(machine: Machine) -> None:
    """The README's commands move the spool, and drops are answered in its new place."""
    follow(machine, "A spool elsewhere")

    with machine.journal() as journal:
        machine.say("echo one > /data/prompts/inbox/moved.txt", user="alice")
        journal.event("job.delivered", file="moved.txt")

    assert machine.say("cat /data/prompts/done/moved.txt", user="alice") == "one"


def test_upgrade(machine: Machine) -> None:
    """The README's commands put another version in place of the running one."""
    before = machine.shown("MainPID")
    follow(machine, "Upgrade")

    assert machine.say("systemctl is-active promptspool") == "active"
    assert machine.shown("MainPID") != before


def test_uninstall(machine: Machine) -> None:
    """The README's commands leave nothing behind."""
    machine.say("mv /data/prompts /srv/")
    follow(machine, "Uninstall")
    elsewhere = ("/proc", "/sys", "/run", "/root", "/tmp", "/var/log", "/var/tmp")  # noqa: S108
    pruned = " -o ".join(f"-path {path}" for path in elsewhere)
    left = machine.say(f"find / -xdev \\( {pruned} \\) -prune -o -name '*promptspool*' -print")

    assert left == ""
    assert machine.run("id", "promptspool").returncode != 0
