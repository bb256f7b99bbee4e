"""What a row may bring instead of a prompt: a ready request, messages, an input.

Checked for what would fail a whole batch at the provider, not only this request; of all else the
provider is the judge. Pure. Raises `BadInput` (bad data).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from promptspool.errors import BadInput
from promptspool.intake.messages import check_content
from promptspool.intake.request import (
    EMBEDDINGS,
    PROMPT_FIELDS,
    RESPONSES,
    Request,
    count_inputs,
    read_body,
)
from promptspool.intake.values import described, is_blank, member, shown, text_of

if TYPE_CHECKING:
    from promptspool.intake.rows import Columns

FORBIDDEN = ("stream", "background")
"""Parameters whose answers cannot be lines of a file (OpenAI Batch guide: no streaming)."""

_POST = b'"POST"'

_HARMLESS = (b"false", b"null")

# What a response may be made of without an input of its own.
_EARLIER = ("conversation", "previous_response_id")

_bodies = msgspec.json.Decoder(dict[str, msgspec.Raw])
_anything = msgspec.json.Decoder()


def is_ready(columns: Columns, *, has_template: bool) -> bool:
    """Tell a ready request from a table that happens to have a column `url` or `body`.

    With a template, a table of `method`, `url` and `body` is one of texts.
    """
    if "url" not in columns or "body" not in columns:
        return False

    return columns["body"].startswith(b"{") or ("method" in columns and not has_template)


def ready_request(columns: Columns) -> Request:
    """Return the request that a row is: passed on as it stands, but for its `custom_id`."""
    method = columns.get("method", _POST)

    if method != _POST:
        raise _fault("method", shown(method), 'write "method": "POST"')

    url = text_of(columns["url"])

    if url not in PROMPT_FIELDS:
        raise _fault("url", shown(columns["url"]), f"write one of {', '.join(PROMPT_FIELDS)}")

    for name in ("messages", "input", "prompt"):
        if not is_blank(columns.get(name, b"")):
            reason = f"the row has both a body and {name!r} beside it; leave one of them out"
            raise BadInput(reason, code="ambiguous_row", key=name)

    body = _checked_body(url, columns["body"])
    size, limit = read_body(body)
    members = {"method": _POST, **columns}
    members.pop("custom_id", None)

    return Request(
        url=url,
        model=text_of(bytes(body["model"])),
        inputs=count_inputs(bytes(body["input"])) if url == EMBEDDINGS else 0,
        fields=b",".join(member(name, raw) for name, raw in members.items()),
        text_bytes=size,
        max_output=limit,
    )


def array_in_text(raw: bytes, *, key: str) -> bytes:
    """Return the array that the string *raw* holds as JSON text, *raw* itself if it holds none.

    A table has no other place for one. Raises `BadInput` for what begins like an array of objects,
    but is broken.
    """
    text = text_of(raw).strip()

    if not text.startswith("["):
        return raw

    array = text.encode()

    try:
        _anything.decode(array)
    except (msgspec.DecodeError, RecursionError) as error:
        if not text[1:].lstrip().startswith(('"', "{")):
            return raw

        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        reason = f"{key} is a string that begins like an array, but is broken JSON: {why}; mend it"
        raise BadInput(reason, code=f"invalid_{key}", key=key) from error

    return array


def _fault(key: str, found: str, advice: str) -> BadInput:
    return BadInput(f"{key} is {found}; {advice}", code="invalid_request", key=key)


def _checked_body(url: str, raw: bytes) -> dict[str, msgspec.Raw]:
    if not raw.startswith(b"{"):
        raise _fault("body", described(raw), "write the body of the request as an object")

    body = _bodies.decode(raw)
    model = bytes(body.get("model", b""))

    if not text_of(model):
        advice = 'write the name of one, as in "model": "gpt-5-mini"'
        raise _fault("body.model", shown(model), advice)

    for name in FORBIDDEN:
        value = bytes(body.get(name, b"false"))

        if value not in _HARMLESS:
            raise _fault(f"body.{name}", f"{shown(value)}, which no batch can do", "leave it out")

    _check_prompt(url, body)

    return body


def _check_prompt(url: str, body: dict[str, msgspec.Raw]) -> None:
    """Raise `BadInput` unless *body* has what *url* takes, in the shape that it takes it."""
    field = PROMPT_FIELDS[url]

    if field in body:
        check_content(url, bytes(body[field]), key=f"body.{field}")
        return

    if url == RESPONSES and _is_made_of_earlier(body):
        return

    for other in ("messages", "input", "prompt"):
        if other in body:
            fitting = [f'"{known}"' for known, name in PROMPT_FIELDS.items() if name == other]
            reason = (
                f'url is "{url}", which takes {field!r}, but body has {other!r}; '
                f'write {field!r} there, or "url": {" or ".join(fitting)}'
            )
            raise BadInput(reason, code="url_mismatch", key="url")

    example = "[...]" if field == "messages" else '"..."'
    raise _fault(f"body.{field}", "missing", f'write what to ask, as in "{field}": {example}')


def _is_made_of_earlier(body: dict[str, msgspec.Raw]) -> bool:
    """Tell whether a response needs no input: it has a stored prompt, or goes on from others."""
    is_stored = bytes(body.get("prompt", b"")).startswith(b"{")

    return is_stored or any(not is_blank(bytes(body.get(name, b""))) for name in _EARLIER)
