"""The simulator put together: one account of one provider, as a Starlette application.

Raises OSError (*environment*) when its directory cannot be made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route as Path_

from promptspool.simulator.batches import BatchBook
from promptspool.simulator.faults import Faults, Route
from promptspool.simulator.files import FileStore, Ids
from promptspool.simulator.gate import Gate, Handler, Stamp
from promptspool.simulator.ledger import Ledger
from promptspool.simulator.problems import ApiProblem, refusal
from promptspool.simulator.routes import BatchRoutes, ControlRoutes, FileRoutes
from promptspool.simulator.settings import WINDOW_S, SimulatorSettings
from promptspool.simulator.wire import Batch

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.requests import Request
    from starlette.responses import Response

    from promptspool.clock import Bell, Clock


class OffsetClock:
    """A clock that tells another time of day than the one it is made of."""

    def __init__(self, clock: Clock, offset_s: float) -> None:
        """Go *offset_s* ahead of *clock*, or behind it."""
        self._clock = clock
        self._offset_s = offset_s

    def now(self) -> float:
        """Return Unix seconds."""
        return self._clock.now() + self._offset_s

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start."""
        return self._clock.monotonic()

    async def wait(self, bell: Bell, timeout_s: float) -> None:
        """Return when the bell is rung or *timeout_s* seconds have passed."""
        await self._clock.wait(bell, timeout_s)


class Simulator:
    """State and logic of one simulated provider; everything is lost with the object.

    *app* is the ASGI application, *faults* its script, *ledger* what it accepted.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        directory: Path,
        api_keys: frozenset[str] = frozenset({"sk-simulated"}),
        settings: SimulatorSettings | None = None,
    ) -> None:
        """Start empty; *directory* holds the bytes of files and is not cleaned up."""
        directory.mkdir(parents=True, exist_ok=True)
        self.settings = settings or SimulatorSettings()
        self.faults = Faults()
        self.ledger = Ledger()
        clock = OffsetClock(clock, self.settings.clock_offset_s)
        self._clock = clock
        self._api_keys = api_keys
        ids = Ids(self.settings.seed)
        self._ids = ids
        self._files = FileStore(clock=clock, directory=directory, ids=ids)
        self._batches = BatchBook(
            clock=clock,
            settings=self.settings,
            files=self._files,
            ids=ids,
            faults=self.faults,
            ledger=self.ledger,
        )
        self.app = self._application()

    def add_foreign_batches(
        self,
        count: int,
        *,
        created_at: float | None = None,
        spacing_s: float = 0.0,
        metadata: dict[str, str] | None = None,
    ) -> None:
        """Put *count* completed batches of other clients into the list.

        The youngest is of *created_at* by the provider's clock, None for its present, and each
        *spacing_s* older than the one after it; one of the future is listed when its time has come.
        They are in no ledger.
        """
        youngest = self._clock.now() if created_at is None else created_at
        self._batches.add_foreign(
            Batch(
                id=self._ids.next("batch_"),
                endpoint="/v1/chat/completions",
                input_file_id="file-of-another",
                status="completed",
                output_file_id="file-of-another-too",
                created_at=int(youngest - spacing_s * number),
                expires_at=int(youngest - spacing_s * number + WINDOW_S),
                metadata=metadata,
            )
            for number in range(count)
        )

    def _application(self) -> Starlette:
        return Starlette(
            routes=[*self._file_routes(), *self._batch_routes(), *self._control_routes()],
            middleware=[Middleware(Stamp, clock=self._clock)],
            exception_handlers={HTTPException: _no_route},
        )

    def _file_routes(self) -> list[Path_]:
        files = FileRoutes(
            files=self._files,
            batches=self._batches,
            faults=self.faults,
            ledger=self.ledger,
            settings=self.settings,
        )
        return [
            self._path("POST", "/v1/files", "files.create", files.create),
            self._path("GET", "/v1/files", "files.list", files.list),
            self._path("GET", "/v1/files/{id}", "files.get", files.get),
            self._path("GET", "/v1/files/{id}/content", "files.content", files.content),
            self._path("DELETE", "/v1/files/{id}", "files.delete", files.delete),
        ]

    def _batch_routes(self) -> list[Path_]:
        batches = BatchRoutes(self._batches)
        return [
            self._path("POST", "/v1/batches", "batches.create", batches.create),
            self._path("GET", "/v1/batches", "batches.list", batches.list),
            self._path("GET", "/v1/batches/{id}", "batches.get", batches.get),
            self._path("POST", "/v1/batches/{id}/cancel", "batches.cancel", batches.cancel),
        ]

    def _control_routes(self) -> list[Path_]:
        control = ControlRoutes(self.faults, self.ledger)
        return [
            Path_("/_simulator/faults", control.arm, methods=["POST"]),
            Path_("/_simulator/faults", control.clear, methods=["DELETE"]),
            Path_("/_simulator/ledger", control.ledger, methods=["GET"]),
        ]

    def _path(self, method: str, path: str, route: Route, handler: Handler) -> Path_:
        gate = Gate(
            route=route,
            handler=handler,
            describe=BatchRoutes(self._batches).describe,
            api_keys=self._api_keys,
            faults=self.faults,
            ledger=self.ledger,
        )
        return Path_(path, gate, methods=[method])


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class only
    message = f"Invalid URL ({request.method} {request.url.path})"
    return refusal(ApiProblem(error.status_code, message))
