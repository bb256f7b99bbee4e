"""What a row may bring instead of a prompt: a ready request, messages, an input.

Checked for what would fail a whole batch at the provider, not only this request; of all else the
provider is the judge. Pure. Raises `BadInput` (bad data).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from promptspool.errors import BadInput
from promptspool.intake.readers import described
from promptspool.intake.request import EMBEDDINGS, PROMPT_FIELDS, Request, count_inputs, member

if TYPE_CHECKING:
    from promptspool.intake.readers import Columns

_SHOWN = 80

_POST = b'"POST"'


class _Message(msgspec.Struct):
    role: msgspec.Raw = msgspec.Raw(b"null")


_bodies = msgspec.json.Decoder(dict[str, msgspec.Raw])
_arrays = msgspec.json.Decoder(list[msgspec.Raw])
_messages = msgspec.json.Decoder(list[_Message])


def is_ready(columns: Columns) -> bool:
    """Tell a ready request from a table that happens to have a column `url` or `body`."""
    if "url" not in columns or "body" not in columns:
        return False

    return "method" in columns or columns["body"].startswith(b"{")


def ready_request(columns: Columns) -> Request:
    """Return the request that a row is: passed on as it stands, but for its `custom_id`."""
    method = columns.get("method", _POST)

    if method != _POST:
        reason = f'method is {_shown(method)}; write "method": "POST"'
        raise BadInput(reason, code="invalid_request")

    url = text_of(columns["url"])

    if url not in PROMPT_FIELDS:
        known = ", ".join(PROMPT_FIELDS)
        reason = f"url is {_shown(columns['url'])}; write one of {known}"
        raise BadInput(reason, code="invalid_request")

    body = _checked_body(columns["body"])
    members = {"method": _POST, **columns}
    members.pop("custom_id", None)

    return Request(
        url=url,
        model=text_of(bytes(body["model"])),
        inputs=count_inputs(bytes(body.get("input", b""))) if url == EMBEDDINGS else 0,
        fields=b",".join(member(name, raw) for name, raw in members.items()),
    )


def checked_messages(raw: bytes, *, key: str) -> bytes:
    """Return *raw*, the value of *key*, if it is an array of objects."""
    if not raw.startswith(b"["):
        example = '[{"role": "user", "content": "..."}]'
        reason = f"{key} is {described(raw)}; write an array, as in {example}"
        raise BadInput(reason, code=f"invalid_{key}")

    try:
        messages = _messages.decode(raw)
    except msgspec.ValidationError as error:
        example = '{"role": "user", "content": "..."}'
        reason = f"{key} holds something that is no object; write each as {example}"
        raise BadInput(reason, code=f"invalid_{key}") from error

    if not messages:
        raise BadInput(f"{key} is empty; write at least one message", code=f"invalid_{key}")

    return raw


def checked_input(raw: bytes) -> bytes:
    """Return *raw*, the value of `input`, if it is a string or an array with something in it."""
    if not raw.startswith((b'"', b"[")):
        reason = f"input is {described(raw)}; write a string or an array"
        raise BadInput(reason, code="invalid_input")

    if not (_arrays.decode(raw) if raw.startswith(b"[") else text_of(raw).strip()):
        raise BadInput("input is empty; write some text", code="invalid_input")

    return raw


def brings_system(messages: bytes) -> bool:
    """Tell whether an array of messages, which was checked, begins with a system message."""
    return text_of(bytes(_messages.decode(messages)[0].role)) in ("system", "developer")


def text_of(raw: bytes) -> str:
    """Return the string that the JSON text *raw* is, empty if it is something else."""
    return msgspec.json.decode(raw, type=str) if raw.startswith(b'"') else ""


def _checked_body(raw: bytes) -> dict[str, msgspec.Raw]:
    if not raw.startswith(b"{"):
        reason = f"body is {described(raw)}; write the body of the request as an object"
        raise BadInput(reason, code="invalid_request")

    body = _bodies.decode(raw)
    model = bytes(body["model"]) if "model" in body else b""

    if not text_of(model):
        found = _shown(model) if model else "missing"
        reason = f'body.model is {found}; write the name of one, as in "model": "gpt-5-mini"'
        raise BadInput(reason, code="invalid_request")

    if bytes(body.get("stream", b"")) == b"true":
        reason = "body.stream is true, which no batch can do; leave it out"
        raise BadInput(reason, code="invalid_request")

    return body


def _shown(raw: bytes) -> str:
    """Quote a short value as it was written; only name a long or nested one."""
    is_short = raw.startswith(b'"') and len(raw) <= _SHOWN

    return raw.decode() if is_short else described(raw)
