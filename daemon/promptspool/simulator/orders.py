"""What a client asks for: bodies, fields and queries, checked as the real service checks them.

Pure. Raises `ApiProblem` (*bad data*).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import msgspec

from promptspool.simulator.problems import ApiProblem, bad_value, missing, unknown
from promptspool.simulator.settings import RETENTION_S
from promptspool.simulator.wire import ENDPOINTS, Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# openai-openapi, `Metadata`: 16 pairs, keys of 64 and values of 512 characters.
_MAX_PAIRS: Final = 16
_MAX_KEY: Final = 64
_MAX_VALUE: Final = 512

# openai-openapi, `FileExpirationAfter` and `BatchFileExpirationAfter`.
_SHORTEST_S: Final = 3_600
_LONGEST_S: Final = 2_592_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOrder:
    """A sound request for a batch; *kept_s* is how long its result files live."""

    input_file_id: str
    endpoint: Endpoint
    metadata: dict[str, str] | None
    kept_s: int


class _Named(Protocol):
    @property
    def id(self) -> str: ...


NamedType = TypeVar("NamedType", bound=_Named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which part of a list is wanted; *after* is the last id of the page before."""

    after: str | None
    limit: int

    def cut(self, entries: Iterable[NamedType], kind: str) -> tuple[list[NamedType], bool]:
        """Return one page of *entries* and whether there is more.

        Raises `ApiProblem` 404 when *after* is not among them; *kind* is for its message.
        """
        rest = iter(entries)

        if self.after is not None and not any(entry.id == self.after for entry in rest):
            raise unknown(kind, self.after)

        page = [entry for _, entry in zip(range(self.limit + 1), rest, strict=False)]
        return page[: self.limit], len(page) > self.limit


def page(query: Mapping[str, str], *, default: int, longest: int) -> Page:
    """Read `after` and `limit`."""
    given = query.get("limit")

    if given is None:
        return Page(after=query.get("after"), limit=default)

    if not given.isdigit():
        raise bad_value("limit", "expected an integer.", "invalid_type")

    if int(given) < 1:
        raise bad_value("limit", "expected a value >= 1.", "integer_below_min_value")

    if int(given) > longest:
        raise bad_value("limit", f"expected a value <= {longest}.", "integer_above_max_value")

    return Page(after=query.get("after"), limit=int(given))


def batch_order(raw: bytes) -> BatchOrder:
    """Read the body of `POST /v1/batches`."""
    body = _object(raw)

    for name in ("input_file_id", "endpoint", "completion_window"):
        if body.get(name) is None:
            raise missing(name)

        if not isinstance(body[name], str):
            raise bad_value(name, "expected a string.", "invalid_type")

    if body["completion_window"] != "24h":
        raise bad_value("completion_window", "supported values are: '24h'.")

    if body["endpoint"] not in ENDPOINTS:
        raise bad_value("endpoint", f"supported values are: {', '.join(ENDPOINTS)}.")

    return BatchOrder(
        input_file_id=str(body["input_file_id"]),
        endpoint=body["endpoint"],
        metadata=_metadata(body.get("metadata")),
        kept_s=_batch_retention(body.get("output_expires_after")),
    )


def metadata_of(raw: bytes) -> dict[str, str] | None:
    """Return the metadata of a batch body that may be anything, None when there is none."""
    try:
        return batch_order(raw).metadata
    except ApiProblem:
        return None


def file_retention(fields: Mapping[str, str]) -> int:
    """Read `expires_after[...]` of an upload form; 30 days when it is absent."""
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")

    if anchor is None and seconds is None:
        return RETENTION_S

    if anchor != "created_at":
        raise bad_value("expires_after[anchor]", "supported values are: 'created_at'.")

    return _seconds(int(seconds) if seconds and seconds.isdigit() else None, "expires_after")


def _object(raw: bytes) -> dict[str, object]:
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        body = None

    if isinstance(body, dict):
        return body

    message = "We could not parse the JSON body of your request."
    raise ApiProblem(400, message)


def _metadata(value: object) -> dict[str, str] | None:
    if value is None:
        return None

    if not isinstance(value, dict):
        raise bad_value("metadata", "expected an object.", "invalid_type")

    if len(value) > _MAX_PAIRS:
        message = f"expected at most {_MAX_PAIRS} properties."
        raise bad_value("metadata", message, "object_above_max_properties")

    return {key: _pair_value(key, text) for key, text in value.items()}


def _pair_value(key: str, text: object) -> str:
    if len(key) > _MAX_KEY:
        message = f"expected keys of at most {_MAX_KEY} characters."
        raise bad_value("metadata", message, "string_above_max_length")

    if not isinstance(text, str):
        raise bad_value(f"metadata.{key}", "expected a string.", "invalid_type")

    if len(text) > _MAX_VALUE:
        message = f"expected a string of at most {_MAX_VALUE} characters."
        raise bad_value(f"metadata.{key}", message, "string_above_max_length")

    return text


def _batch_retention(value: object) -> int:
    match value:
        case None:
            return RETENTION_S
        case {"anchor": "created_at", "seconds": int(seconds)}:
            return _seconds(seconds, "output_expires_after")
        case _:
            raise bad_value("output_expires_after", "expected an anchor and seconds.")


def _seconds(seconds: int | None, param: str) -> int:
    if seconds is None or not _SHORTEST_S <= seconds <= _LONGEST_S:
        raise bad_value(f"{param}.seconds", f"expected {_SHORTEST_S} to {_LONGEST_S}.")

    return seconds
