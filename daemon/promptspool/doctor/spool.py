"""What is to be said of the spool's folders: whose they are, and what their file systems can do."""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from promptspool.doctor.finding import ok, problem, warning
from promptspool.spool import NO_LINKS, PROBE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from promptspool.doctor.finding import Finding
    from promptspool.spool import Spool

LOW_BYTES = 1_000_000_000
"""Less free space is worth a warning: batches of 200 MB and their answers go through it."""

FULL_BYTES = 100_000_000

LOW_INODES = 10_000

_NETWORKS = frozenset({"9p", "afs", "ceph", "cifs", "nfs", "nfs4", "smb3", "smbfs"})
"""Types of file systems that are on another machine (mount(8))."""

_SEARCH = 0o1
_ALL = 0o7


def spool_findings(spool: Spool) -> Iterator[Finding]:
    """Yield what is found of the spool's folders; lets `OSError` through."""
    if not os.path.lexists(spool.root):
        mend = "the first start makes it; if it was there before, mount it or mend spool.path"
        yield warning("spool", f"{spool.root} is not there", mend)

        return

    missing = [folder for folder in folders(spool) if not folder.is_dir()]
    odd = [folder for folder in missing if os.path.lexists(folder)]

    if odd:
        names = ", ".join(map(str, odd))
        yield problem("spool", f"in the way: {names}", "move it away; a folder is to be there")
    elif missing:
        names = ", ".join(map(str, missing))
        yield warning("spool", f"not there: {names}", "the next start makes them")
    else:
        yield ok("spool", f"{spool.root}, state in {spool.state}")

    there = [folder for folder in folders(spool) if folder not in missing]
    yield from _permissions(spool, there)
    yield from _file_system(spool, there)
    yield from _leases(spool)
    yield from _room(spool)


def folders(spool: Spool) -> tuple[Path, ...]:
    """Return every folder that the daemon writes to."""
    return (
        spool.inbox,
        spool.working,
        spool.outbox,
        spool.done,
        spool.rejected,
        spool.state,
        spool.control,
    )


def daemon_uid(spool: Spool) -> int:
    """Return whom the state belongs to, which the daemon has made; else the spool's owner."""
    with suppress(FileNotFoundError):
        return spool.state.stat().st_uid

    return spool.root.stat().st_uid


def user_name(uid: int) -> str:
    """Return what a user is called, or the number of one without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def is_allowed(path: Path, uid: int, wanted: int) -> bool:
    """Tell whether a user may do with a folder what the bits of *wanted* say (4 r, 2 w, 1 x).

    By owner, groups and mode; where an access control list decides, it is taken for a yes.
    """
    if uid == os.geteuid():
        return os.access(path, wanted, effective_ids=True)

    status = path.stat()

    if uid == 0 or _has_acl(path):
        return True

    if status.st_uid == uid:
        bits = status.st_mode >> 6
    elif status.st_gid in _groups(uid):
        bits = status.st_mode >> 3
    else:
        bits = status.st_mode

    return bits & wanted == wanted


def _groups(uid: int) -> list[int]:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return []

    return os.getgrouplist(entry.pw_name, entry.pw_gid)


def _has_acl(path: Path) -> bool:
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except OSError:
        return False


def _permissions(spool: Spool, there: list[Path]) -> Iterator[Finding]:
    uid = daemon_uid(spool)
    name = user_name(uid)
    above = [path for path in spool.root.resolve().parents if not is_allowed(path, uid, _SEARCH)]
    closed = [*above, *(path for path in there if not is_allowed(path, uid, _ALL))]
    owners = {path.stat().st_uid for path in there}

    for path in closed:
        wanted = "enter" if path in above else "read and write"
        mend = f"chown or chmod it for {name}, or run the daemon as {user_name(path.stat().st_uid)}"
        yield problem("permissions", f"{name} may not {wanted} {path}", mend)

    if len(owners) > 1 and not closed:
        names = ", ".join(sorted(map(user_name, owners)))
        mend = f"if the daemon is {name}: chown -R {name} {spool.root} {spool.state}"
        yield warning("permissions", f"the folders belong to different users: {names}", mend)
    elif not closed:
        yield ok("permissions", f"{name} may read and write all folders")

    if os.geteuid() not in (uid, 0):
        yield _own_permissions(spool)


def _own_permissions(spool: Spool) -> Finding:
    """Say what whoever asks may do, who is not the daemon's user."""
    me = user_name(os.geteuid())
    may_drop = os.access(spool.inbox, os.W_OK | os.X_OK, effective_ids=True)
    may_read = os.access(spool.outbox, os.R_OK | os.X_OK, effective_ids=True)

    if may_drop and may_read:
        return ok("permissions", f"{me} may drop files and read answers")

    with suppress(OSError, KeyError):
        status = spool.inbox.stat()

        if status.st_mode & stat.S_IWGRP:
            group = grp.getgrgid(status.st_gid).gr_name

            return warning(
                "permissions",
                f"{me} may not drop files, or not read answers",
                f"usermod -aG {group} {me}, and log in again",
            )

    message = f"{me} may not drop files, or not read answers; nobody but the daemon may"
    mend = "chgrp and chmod 3770 inbox, and 2750 outbox, for a group of yours"

    return warning("permissions", message, mend)


# What the file systems can do.


def _file_system(spool: Spool, there: list[Path]) -> Iterator[Finding]:
    """Try links and renames between the folders, and say where the folders are."""
    for path, kind in ((spool.state, _kind(spool.state)), (spool.root, _kind(spool.root))):
        if kind in _NETWORKS and path == spool.state:
            mend = "set spool.state to a folder on a disk of this machine"
            yield problem("file system", f"{path} is on {kind}, where no database is safe", mend)
        elif kind in _NETWORKS:
            mend = (
                "drop files on this machine, or raise spool.settle to the longest pause of a copy"
            )
            message = f"{path} is on {kind}, where writers on other machines are not seen"
            yield warning("file system", message, mend)

    trees = (spool.inbox, spool.outbox, spool.done, spool.rejected)
    tried = [tree for tree in trees if tree in there and spool.working in there]
    refused = {tree: error for tree in tried if (error := _refusal(spool.working, tree))}
    untried = [tree for tree, error in refused.items() if error.errno == errno.EACCES]

    for tree, error in refused.items():
        if tree not in untried:
            yield _unlinked(tree, spool.working, error)

    if untried:
        mend = f"run this as {user_name(daemon_uid(spool))}, or as root"
        yield warning("file system", "links and renames could not be tried", mend)
    elif tried and not refused:
        yield ok("file system", f"{_kind(spool.root)}: files can be linked and moved in the spool")


def _kind(path: Path) -> str:
    """Return the type of the file system that *path* is on, as mounts are listed (proc(5))."""
    best, kind = "", "a file system"

    with suppress(OSError):
        place = str(path.resolve())

        for line in Path("/proc/self/mounts").read_text("utf-8", "replace").splitlines():
            _, mount, found, *_ = line.split()
            mount = mount.replace("\\040", " ")
            is_above = place == mount or place.startswith(mount.rstrip("/") + "/")

            if is_above and len(mount) >= len(best):
                best, kind = mount, found

    return kind


def _refusal(working: Path, tree: Path) -> OSError | None:
    """Give an empty file another name in *tree*, and move it there; return what forbids it."""
    name = f"{PROBE}-{secrets.token_hex(6)}"
    probe, there = working / name, tree / name

    try:
        probe.touch(exist_ok=False)
        there.hardlink_to(probe)
        there.unlink()  # or the rename would do nothing
        probe.rename(there)
    except OSError as error:
        return error
    finally:
        for left in (probe, there):
            with suppress(OSError):
                left.unlink()

    return None


def _unlinked(tree: Path, working: Path, error: OSError) -> Finding:
    if error.errno == errno.EXDEV:
        return problem(
            "file system",
            f"{tree} and {working} are not on one file system, or not in one mount",
            "keep all of the spool but state/ in one place",
        )

    if error.errno in NO_LINKS:
        return problem(
            "file system",
            f"{tree}: no links can be made here: {error.strerror}",
            "use a file system with hard links, such as ext4, xfs, btrfs or zfs",
        )

    return problem(
        "file system",
        f"{tree}: files cannot be moved here from {working}: {error.strerror}",
        "look at who owns it, lsattr and mounts",
    )


def _leases(spool: Spool) -> Iterator[Finding]:
    """Say whether the kernel tells who has a file of the inbox open (fcntl(2), "Leases")."""
    probe = spool.inbox / f"{PROBE}-{secrets.token_hex(6)}"

    try:
        descriptor = os.open(probe, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return  # which is said under permissions

    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        message = f"{spool.inbox}: whether a file is still written to is not told: {error.strerror}"
        mend = "raise spool.settle to the longest pause of a copy, or drop files by rename"
        yield warning("leases", message, mend)
    else:
        yield ok("leases", "the kernel tells whether a file is still written to")
    finally:
        os.close(descriptor)

        with suppress(OSError):
            probe.unlink()


def _room(spool: Spool) -> Iterator[Finding]:
    """Say how much room is left, once for each file system."""
    places = {path.stat().st_dev: path for path in (spool.state, spool.root) if path.is_dir()}

    for path in places.values():
        found = os.statvfs(path)
        free = found.f_bavail * found.f_frsize
        message = f"{path}: {free / 1e9:,.1f} GB free"
        mend = "remove old files from done/ and outbox/, or give the spool more room"

        if found.f_files and found.f_favail < LOW_INODES:
            yield warning("free space", f"{path}: {found.f_favail:,} more files fit", mend)
        elif free < FULL_BYTES:
            yield problem("free space", message, mend)
        elif free < LOW_BYTES:
            yield warning("free space", message, mend)
        else:
            yield ok("free space", message)
