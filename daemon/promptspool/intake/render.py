"""Render: the columns of a row become one request of the batch API.

A row brings a ready request, `messages`, `input`, or what the profile makes a prompt of. JSON that
a row brings is spliced in as it was written: what its author chose (key order, number formats) is
what the model gets. Pure. Raises `BadInput` (bad data) for a row, or for a profile that fits none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from promptspool.errors import BadInput
from promptspool.intake.brought import (
    brings_system,
    checked_input,
    checked_messages,
    is_ready,
    ready_request,
    text_of,
)
from promptspool.intake.readers import described
from promptspool.intake.request import (
    CHAT,
    EMBEDDINGS,
    MODERATIONS,
    PROMPT_FIELDS,
    RESPONSES,
    Request,
    count_inputs,
    member,
)
from promptspool.intake.templates import RowTemplate, listed

if TYPE_CHECKING:
    from promptspool.intake.readers import Columns
    from promptspool.settings import ProfileSettings

_INTEGER = re.compile(rb"-?[0-9]+")


class Renderer:
    """Makes requests as one profile says."""

    def __init__(self, profile: ProfileSettings) -> None:
        """Prepare everything that is the same for all rows.

        Raises `BadInput` for the whole file if the profile cannot be followed.
        """
        self._url = profile.endpoint
        self._model = profile.model
        self._prompt = RowTemplate(profile.prompt, key="prompt") if profile.prompt else None
        self._id = RowTemplate(profile.id, key="id") if profile.id else None
        # Only these two endpoints have a place for it.
        system = profile.system if profile.endpoint in (CHAT, RESPONSES) else None
        self._system = msgspec.json.encode(system) if system else None
        self._params = _encoded_params(profile)

    def user_id(self, columns: Columns) -> str | None:
        """Return the user's own id of a row, None if it has none.

        Raises `BadInput` if the profile's template for it fails.
        """
        if self._id is not None:
            return self._id.render(columns).strip() or None

        for name in ("custom_id", "id"):
            raw = columns.get(name, b"")

            if _INTEGER.fullmatch(raw):
                return raw.decode()

            if text := text_of(raw):
                return text

        return None

    def request(self, columns: Columns) -> Request:
        """Return the request that a row stands for; raises `BadInput` if it stands for none."""
        if is_ready(columns):
            return ready_request(columns)

        model = text_of(columns.get("model", b"")) or self._model
        messages = columns.get("messages", b"")

        if self._url in (CHAT, RESPONSES) and self._is_brought(messages):
            return self._made(checked_messages(messages, key="messages"), model)

        given = columns.get("input", b"")

        if self._url in (RESPONSES, EMBEDDINGS, MODERATIONS) and given:
            return self._made(self._checked_input(given), model)

        return self._made(self._prompt_text(columns), self._model)

    def _is_brought(self, messages: bytes) -> bool:
        """Tell whether a row brings messages; with a template, other things may be called so."""
        return messages.startswith(b"[") or (bool(messages) and self._prompt is None)

    def _checked_input(self, raw: bytes) -> bytes:
        checked_input(raw)

        # A list of texts is for embeddings; here a list is messages and the like.
        if self._url == RESPONSES and raw.startswith(b"["):
            checked_messages(raw, key="input")

        return raw

    def _prompt_text(self, columns: Columns) -> bytes:
        """Return the prompt of a plain row as a JSON string."""
        if self._prompt is not None:
            raw = msgspec.json.encode(self._prompt.render(columns))
        else:
            raw = _prompt_column(columns)

        if not text_of(raw).strip():
            raise BadInput("the prompt is empty; write some text", code="empty_prompt")

        return raw

    def _made(self, content: bytes, model: str) -> Request:
        """Put *content*, a prompt or what a row brought, into a request."""
        is_list = content.startswith(b"[")
        system = None if is_list and self._system and brings_system(content) else self._system
        rest = self._params

        if self._url == CHAT:
            content = _chat_messages(content, system)
        elif system is not None:
            rest = b',"instructions":' + system + rest

        field = PROMPT_FIELDS[self._url]
        body = b'{"model":%s,%s%s}' % (msgspec.json.encode(model), member(field, content), rest)

        return Request(
            url=self._url,
            model=model,
            inputs=count_inputs(content) if self._url == EMBEDDINGS else 0,
            fields=b'"method":"POST","url":"%s","body":%s' % (self._url.encode(), body),
        )


def _prompt_column(columns: Columns) -> bytes:
    if "prompt" not in columns:
        reason = (
            f"found no key 'prompt' but {listed(columns)}; "
            f"rename one, or write a prompt template in the profile"
        )
        raise BadInput(reason, code="missing_prompt")

    raw = columns["prompt"]

    if not raw.startswith(b'"'):
        reason = f"prompt is {described(raw)}; write a string"
        raise BadInput(reason, code="invalid_prompt")

    return raw


def _chat_messages(content: bytes, system: bytes | None) -> bytes:
    """Return the messages of a chat: *content* or one made of it, after the system message."""
    first = b'{"role":"system","content":%s},' % system if system is not None else b""

    if content.startswith(b"["):
        return b"[" + first + content[1:]

    return b'[%s{"role":"user","content":%s}]' % (first, content)


def _encoded_params(profile: ProfileSettings) -> bytes:
    """Return the profile's params as members of a body, each after a comma."""
    taken = {"model", PROMPT_FIELDS[profile.endpoint]}

    if profile.endpoint == RESPONSES and profile.system:
        taken.add("instructions")

    for name in profile.params:
        if name == "stream":
            reason = "the profile's params hold 'stream', which no batch can do; leave it out"
            raise BadInput(reason, code="bad_profile")

        if name in taken:
            reason = f"the profile's params hold {name!r}, which the rows decide; leave it out"
            raise BadInput(reason, code="bad_profile")

    members = ((name, msgspec.json.encode(value)) for name, value in profile.params.items())

    return b"".join(b"," + member(name, raw) for name, raw in members)
