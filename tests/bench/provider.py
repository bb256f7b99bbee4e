"""A provider that costs next to nothing: as much of the Batch API as clients call, in one process.

`python -m bench.provider FOLDER` prints its port and serves until its standard input ends. It keeps
uploads as they come, answers with what was made before, and sends files by sendfile(2), so that it
is not what is measured; its own CPU seconds are shown beside every figure. Below `/_bench/` it is
told what to do: see `bench.remote`, which is the handle on it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from bench.account import Account, File
from bench.connection import Connection, Received, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.account import Body

PREFIX = "/v1"
PAGE = 100


def answered(account: Account, request: Received) -> tuple[str, Reply]:
    """Return the name of a call, as counts have it, and its answer."""
    url = urlsplit(request.target)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    parts = url.path.removeprefix(PREFIX).strip("/").split("/")

    match request.method, parts:
        case "POST", ["files"]:
            return "upload", Reply(body=_uploaded(account, request))
        case "POST", ["batches"]:
            batch = account.add_batch(json.loads(request.body))

            return "create", Reply(body=batch.shown())
        case "GET", ["batches"]:
            limit = min(int(query.get("limit", "20")), PAGE)

            return "list", Reply(body=account.page(query.get("after"), limit))
        case "GET", ["batches", one] if one in account.batches:
            return "retrieve", Reply(body=account.batches[one].shown())
        case "GET", ["files"]:
            newest = list(account.files.values())[::-1][: int(query.get("limit", "10000"))]
            listed = {
                "object": "list",
                "data": [file.shown() for file in newest],
                "has_more": False,
            }

            return "files", Reply(body=_json(listed))
        case "GET", ["files", one] if one in account.files:
            return "file", Reply(body=_json(account.files[one].shown()))
        case "GET", ["files", one, "content"] if one in account.files:
            return "download", Reply(file=account.files[one].path)
        case "DELETE", ["files", one] if one in account.files:
            account.files.pop(one).path.unlink(missing_ok=True)

            return "delete", Reply(body=_json({"id": one, "object": "file", "deleted": True}))
        case _:
            error = {"message": f"no such thing: {request.target}", "code": "not_found"}

            return "unknown", Reply(body=_json({"error": error}), status=404)


def _uploaded(account: Account, request: Received) -> bytes:
    name = account.next_id("file")
    path = account.folder / name
    assert request.upload is not None
    request.upload.path.rename(path)
    account.files[name] = file = File(
        id=name,
        name=request.upload.filename,
        path=path,
        size_bytes=request.upload.size_bytes,
        created_at=int(time.time()),
    )

    return _json(file.shown())


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


class Server:
    """Answers calls, after the time that a call is to take."""

    def __init__(self, account: Account) -> None:
        """Serve *account*."""
        self._account = account
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, request: Received, send: Callable[[Reply], None]) -> None:
        """Answer a call by *send*, now or later."""
        if request.target.startswith("/_bench/"):
            self._spawn(self._told(request, send))
            return

        route, reply = answered(self._account, request)
        reply.on_sent = partial(self._sent, route, request)

        if route == "create" and not self._account.is_held:
            self._spawn(self._finish_soon([self._account.order[-1]]))

        if self._account.latency_s:
            asyncio.get_running_loop().call_later(self._account.latency_s, send, reply)
        else:
            send(reply)

    def _sent(self, route: str, request: Received) -> None:
        if route == "download":
            name = request.target.split("/")[-2]

            for batch in self._account.batches.values():
                if batch.output_file == name and batch.fetched_at is None:
                    batch.fetched_at = time.monotonic()

        self._account.note(route, request.began_at)

    async def _told(self, request: Received, send: Callable[[Reply], None]) -> None:
        order: Body = json.loads(request.body or b"{}")

        try:
            said = await self._obeyed(request.target.removeprefix("/_bench/"), order)
        except (KeyError, ValueError, OSError) as error:
            send(Reply(body=_json({"error": repr(error)}), status=400))
        else:
            send(Reply(body=_json(said)))

    async def _obeyed(self, what: str, order: Body) -> Body:
        account = self._account

        match what:
            case "set":
                account.latency_s = float(order.get("latency_s", account.latency_s))
                account.moving = int(order.get("moving", account.moving))
                account.is_held = bool(order.get("is_held", account.is_held))
                account.answer_bytes = int(order.get("answer_bytes", account.answer_bytes))
            case "put":
                return {"ids": [account.add_batch(one).id for one in order["batches"]]}
            case "prepare":
                await self._prepare(order.get("ids") or account.order)
            case "finish":
                await self._finish_soon(order.get("ids") or account.order)
            case "await":
                await self._awaited(order["route"], int(order["count"]), float(order["timeout_s"]))
            case "state":
                return {
                    "counts": account.counts,
                    "batches": [account.batches[one].told() for one in account.order],
                    "calls": account.calls if order.get("calls") else [],
                    "cpu_s": time.process_time(),
                }
            case "reset":
                for file in account.files.values():
                    file.path.unlink(missing_ok=True)

                self._account = Account(
                    account.folder,
                    account.is_held,
                    account.latency_s,
                    answer_bytes=account.answer_bytes,
                )
            case _:
                raise ValueError(what)

        return {}

    async def _prepare(self, ids: list[str]) -> None:
        for one in ids:
            await asyncio.to_thread(self._account.prepare, self._account.batches[one])

    async def _finish_soon(self, ids: list[str]) -> None:
        """Finish batches at once, those without answers when they have them."""
        await self._prepare(ids)

        for one in ids:
            if self._account.batches[one].status != "completed":
                self._account.finish(self._account.batches[one])

    async def _awaited(self, route: str, count: int, timeout_s: float) -> None:
        if self._account.counts.get(route, 0) < count:
            reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._account.waiters.append((route, count, reached))
            await asyncio.wait_for(reached, timeout_s)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _serve(folder: Path) -> None:
    loop = asyncio.get_running_loop()
    is_over = asyncio.Event()
    server = Server(Account(folder))
    listening = await loop.create_server(
        partial(Connection, server.handle, folder), "127.0.0.1", 0, backlog=1024
    )
    loop.add_reader(0, lambda: None if os.read(0, 1024) else is_over.set())
    sys.stdout.write(f"{listening.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await is_over.wait()


def main() -> None:
    """Serve; on the last core alone where there are more than two."""
    cores = sorted(os.sched_getaffinity(0))

    if len(cores) > 2:
        os.sched_setaffinity(0, cores[-1:])

    asyncio.run(_serve(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
