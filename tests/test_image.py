"""The container image, built for real by buildah and run as it says it is to be run.

Its base is a Debian that has the same Python, under the base's name. Opt-in, since it takes
minutes, root, and packages from a mirror:
PROMPTSPOOL_BOOT=1 python -m pytest -n 0 tests/test_image.py
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import debian
from commands import ROOT, ids, simulated

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.skipif(not debian.IS_WANTED, reason="PROMPTSPOOL_BOOT=1 builds an image")

RELEASE = "trixie"
"""The Debian of which the Dockerfile's base is made."""

KEY = "sk-simulated"
LIMIT_S = 60
"""Real time, against hangs."""

READY = '"event":"daemon.ready"'
DELIVERED = '"event":"job.delivered"'

# What a container engine does for --read-only --tmpfs /tmp --volume SPOOL:/spool; then the program
# takes the place of the shell, as the first process of its name space.
MOUNTS = """
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"
mount -t tmpfs tmpfs "$1/tmp" && mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev"
mount --bind "$2" "$1/spool"
image=$1 user=$3; shift 3
exec chroot --userspec="$user" --groups= "$image" "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The image, and where its files are."""

    root: Path
    config: dict[str, Any]
    """As the Docker format has it."""

    def environ(self, **extra: str) -> list[str]:
        """Return how to run something in the image's environment and *extra*, and no other."""
        return ["/usr/bin/env", "-i", *self.config["Env"], *(f"{k}={v}" for k, v in extra.items())]

    @contextmanager
    def started(self, spool: Path, **extra: str) -> Iterator[subprocess.Popen[str]]:
        """Run what the image runs, with a read-only root and nothing but *spool* to write to."""
        program = [*self.environ(**extra), *self.config["Entrypoint"], *self.config["Cmd"]]
        spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        script = ["sh", "-euc", MOUNTS, "sh", str(self.root), str(spool), self.config["User"]]

        with subprocess.Popen(  # noqa: S603 - our own image
            [*spaces, *script, *program], stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()


def buildah(storage: Path, *words: str | Path) -> str:
    """Run buildah to its end and return what it prints."""
    places = [f"--root={storage}/root", f"--runroot={storage}/run"]
    done = subprocess.run(  # noqa: S603 - Debian's own
        ["buildah", *places, *map(str, words)],  # noqa: S607 - Debian's own
        env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr

    return done.stdout.strip()


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Build the image, without asking any registry for its base."""
    with tempfile.TemporaryDirectory(prefix="promptspool-image-") as folder:
        storage = Path(folder)
        make_base(storage)
        tag = ["--tag", "promptspool", "--format", "docker"]
        buildah(storage, "build", "--pull-never", *tag, ROOT)
        config = json.loads(buildah(storage, "inspect", "--type", "image", "promptspool"))
        container = buildah(storage, "from", "--pull-never", "promptspool")

        try:
            root = Path(buildah(storage, "mount", container))
            yield Image(root=root, config=config["Docker"]["config"])
        finally:
            buildah(storage, "rm", "--all")
            buildah(storage, "rmi", "--all", "--force")


def make_base(storage: Path) -> None:
    """Give a Debian the name of the image that the Dockerfile builds on."""
    (name,) = set(re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    base = debian.made(RELEASE, ("ca-certificates", "python3", "python3-venv"))
    container = buildah(storage, "from", "scratch")
    buildah(storage, "add", "--quiet", container, base, "/")
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    buildah(storage, "config", "--env", f"PATH={path}", container)
    buildah(
        storage, "run", container, "--", "ln", "-s", "/usr/bin/python3", "/usr/local/bin/python"
    )
    version = buildah(storage, "run", container, "--", "python", "--version")

    assert f"python:{version.split()[1].rpartition('.')[0]}-" in name

    buildah(storage, "commit", "--quiet", "--rm", container, f"docker.io/library/{name}")


@pytest.fixture
def spool(image: Image, tmp_path: Path) -> Path:
    """Return a folder that belongs to the image's user, as the image's own would."""
    made = tmp_path / "spool"
    made.mkdir()
    user, group = image.config["User"].split(":")
    os.chown(made, int(user), int(group))

    return made


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Read what the daemon logs up to a line with *text*."""
    assert process.stdout is not None
    deadline = threading.Timer(LIMIT_S, process.kill)
    deadline.start()

    try:
        assert any(text in line for line in process.stdout), f"it ended without {text}"
    finally:
        deadline.cancel()


def inner(process: subprocess.Popen[str]) -> int:
    """Return the process id of what runs in the image, as seen from here."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def inside(image: Image, process: subprocess.Popen[str], words: Sequence[str]) -> int:
    """Run a command beside the daemon, as `docker exec` does, and return its exit code."""
    user, group = image.config["User"].split(":")
    enter = ["nsenter", "--target", str(inner(process)), "--mount", "--pid", "--root", "--wd"]
    become = ["setpriv", "--reuid", user, "--regid", group, "--clear-groups"]

    return subprocess.run(  # noqa: S603 - our own image
        [*enter, "--", *become, *image.environ(), *words], check=False, timeout=LIMIT_S
    ).returncode


def settings(url: str) -> dict[str, str]:
    """Return what a person sets, to whom a simulated provider answers quickly."""
    return {
        "OPENAI_API_KEY": KEY,
        "PROMPTSPOOL_PROVIDERS__OPENAI__BASE_URL": url,
        "PROMPTSPOOL_SPOOL__SETTLE": "100ms",
        "PROMPTSPOOL_POLLING__FIRST": "100ms",
        "PROMPTSPOOL_POLLING__CAP": "200ms",
    }


def test_a_drop_is_answered(image: Image, spool: Path) -> None:
    """On a read-only root, as a user without a name: a drop comes back, and a stop is graceful."""
    with simulated(speed=6000) as url, image.started(spool, **settings(url)) as process:
        read_until(process, READY)
        (spool / "inbox" / "colours.csv").write_text("prompt\nred?\nblue?\n")
        read_until(process, DELIVERED)

        status = Path(f"/proc/{inner(process)}/status").read_text()
        uid = re.findall(r"^Uid:\s+(\d+)", status, re.MULTILINE)

        assert uid == [image.config["User"].partition(":")[0]]
        assert inside(image, process, ["touch", "/probe"]) != 0

        os.kill(inner(process), signal.Signals[image.config.get("StopSignal", "SIGTERM")])
        read_until(process, '"event":"daemon.stopped"')

        assert process.wait(LIMIT_S) == 0

    assert len(ids(spool / "outbox" / "colours.csv.results.jsonl")) == 2


def test_the_health_check_knows(image: Image, spool: Path) -> None:
    """The image's own check passes while the daemon answers, and fails while it is stopped."""
    kind, *check = image.config["Healthcheck"]["Test"]

    with simulated(speed=6000) as url, image.started(spool, **settings(url)) as process:
        read_until(process, READY)

        assert kind == "CMD"
        assert inside(image, process, check) == 0

        os.kill(inner(process), signal.SIGSTOP)

        assert inside(image, process, check) != 0


def test_a_mounted_secret_is_the_key(image: Image, spool: Path) -> None:
    """A secret that is mounted under the name of the variable is the key; no variable is needed."""
    (image.root / "run/secrets").mkdir()
    (image.root / "run/secrets/OPENAI_API_KEY").write_text(f"{KEY}\n")

    with simulated(speed=6000) as url:
        plain = {key: value for key, value in settings(url).items() if key != "OPENAI_API_KEY"}

        with image.started(spool, **plain) as process:
            read_until(process, READY)
            (spool / "inbox" / "red.txt").write_text("red?\n")
            read_until(process, DELIVERED)


def test_what_builds_is_left_behind(image: Image) -> None:
    """The environment that is delivered has neither pip nor what the package is built with."""
    (packages,) = (image.root / "opt/promptspool/lib").glob("python3.*/site-packages")
    names = {path.name.partition("-")[0] for path in packages.iterdir()}

    assert "promptspool" in names
    assert {"pip", "hatchling"} & names == set()
