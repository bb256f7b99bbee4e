"""Messages and inputs: what the body of a request may hold where its endpoint takes the prompt.

Checked for what no provider takes, since a batch with one such line can fail as a whole; of all
else the provider is the judge. Pure. Raises `BadInput` (bad data).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from promptspool.errors import BadInput
from promptspool.intake.request import CHAT, EMBEDDINGS, MODERATIONS, RESPONSES
from promptspool.intake.values import described, is_blank, shown, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_INPUTS = 2_048
"""Embedding inputs of one request (OpenAI API reference, embeddings: an array has 2,048 at most).

It says so of an array of tokens too, and that an input may have 8,192 of them; that one is left to
the provider.
"""

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")

# As they are nearly always written, to spare their decoding.
_WRITTEN_ROLES = {f'"{role}"'.encode(): role for role in _ROLES}

_MESSAGE = '{"role": "user", "content": "..."}'
_PART = '{"type": "text", "text": "..."}'
_INPUT_PART = '{"type": "input_text", "text": "..."}'

_NULL = b"null"
_ABSENT = msgspec.Raw(b"")


class _Entry(msgspec.Struct, gc=False):
    """A message of a chat, an item of a response's input, or a part of either's content."""

    role: msgspec.Raw = _ABSENT
    content: msgspec.Raw = _ABSENT
    type: msgspec.Raw = _ABSENT
    id: msgspec.Raw = _ABSENT
    tool_calls: msgspec.Raw = _ABSENT
    function_call: msgspec.Raw = _ABSENT
    refusal: msgspec.Raw = _ABSENT
    audio: msgspec.Raw = _ABSENT


_entries = msgspec.json.Decoder(list[_Entry])
_arrays = msgspec.json.Decoder(list[msgspec.Raw])
_tokens = msgspec.json.Decoder(list[int])


def check_content(url: str, raw: bytes, *, key: str) -> None:
    """Raise `BadInput` unless *raw*, the value of *key*, is what *url* takes as its prompt."""
    if url == CHAT:
        _check_messages(raw, key)
    elif not raw.startswith(b"["):
        _check_text(raw, key)
    elif url == RESPONSES:
        _check_items(raw, key)
    elif url == EMBEDDINGS:
        _check_inputs(raw, key)
    else:
        _check_parts_or_texts(url, raw, key)


def brings_system(messages: bytes) -> bool:
    """Tell whether an array of messages, which was checked, begins with a system message."""
    return text_of(bytes(_entries.decode(messages)[0].role)) in ("system", "developer")


def _fault(key: str, found: str, advice: str) -> BadInput:
    """Return what is wrong with *key*, a path as in `body.messages[2].role`."""
    field = key.removeprefix("body.").partition("[")[0].strip().casefold()

    return BadInput(f"{key} is {found}; {advice}", code=f"invalid_{field}", key=key)


def _check_messages(raw: bytes, key: str) -> None:
    if not raw.startswith(b"["):
        hint = "" if key.startswith("body.") else ", or name it prompt"
        raise _fault(key, described(raw), f"write an array, as in [{_MESSAGE}]{hint}")

    for index, entry in enumerate(_checked_entries(raw, key)):
        where = f"{key}[{index}]"
        _check_message_content(entry, _checked_role(entry, where), where)


def _checked_entries(raw: bytes, key: str) -> list[_Entry]:
    """Return the messages or items of an array; raises `BadInput` if it has none or others."""
    try:
        entries = _entries.decode(raw)
    except msgspec.ValidationError as error:
        raise _odd_entry(_arrays.decode(raw), key, f"write an object, as in {_MESSAGE}") from error

    if not entries:
        raise _fault(key, "empty", f"write at least one message, as in [{_MESSAGE}]")

    return entries


def _odd_entry(entries: Sequence[msgspec.Raw], key: str, advice: str) -> BadInput:
    """Name the first of *entries* that is no object."""
    found = ((index, bytes(entry)) for index, entry in enumerate(entries))
    index, raw = next((index, raw) for index, raw in found if not raw.startswith(b"{"))

    return _fault(f"{key}[{index}]", described(raw), advice)


def _checked_role(entry: _Entry, where: str) -> str:
    raw = bytes(entry.role)
    role = _WRITTEN_ROLES.get(raw) or text_of(raw)

    if role not in _ROLES:
        raise _fault(f"{where}.role", shown(raw), f"write one of {', '.join(_ROLES)}")

    return role


def _check_message_content(entry: _Entry, role: str, where: str) -> None:
    raw = bytes(entry.content)
    key = f"{where}.content"

    if raw.startswith(b'"') or (raw == _NULL and role == "function"):
        return

    if raw.startswith(b"["):
        _check_parts(raw, key, _PART)
    elif raw not in (b"", _NULL) or not _may_be_silent(entry, role):
        raise _fault(key, shown(raw), f"write a string, or an array of parts as in [{_PART}]")


def _may_be_silent(entry: _Entry, role: str) -> bool:
    """Tell whether a message has something else to say than its content."""
    others = (entry.tool_calls, entry.function_call, entry.refusal, entry.audio)

    return role == "assistant" and any(bytes(other) not in (b"", _NULL) for other in others)


def _check_parts(raw: bytes, key: str, example: str) -> None:
    advice = f"write an object, as in {example}"

    try:
        parts = _entries.decode(raw)
    except msgspec.ValidationError as error:
        raise _odd_entry(_arrays.decode(raw), key, advice) from error

    if not parts:
        raise _fault(key, "empty", f"write a string, or an array of parts as in [{example}]")

    for index, part in enumerate(parts):
        if not text_of(kind := bytes(part.type)):
            advice = f"write the kind of the part, as in {example}"
            raise _fault(f"{key}[{index}].type", shown(kind), advice)


def _check_items(raw: bytes, key: str) -> None:
    for index, item in enumerate(_checked_entries(raw, key)):
        _check_item(item, f"{key}[{index}]")


def _check_item(item: _Entry, where: str) -> None:
    """Check one of a response's input items; only those that are messages have a known shape."""
    kind = text_of(bytes(item.type))

    if not bytes(item.role):
        # A bare id refers to an earlier item.
        if not kind and not text_of(bytes(item.id)):
            raise _fault(f"{where}.role", "missing", f"write a message, as in {_MESSAGE}")

        return

    _checked_role(item, where)

    if kind not in ("", "message"):
        return

    raw = bytes(item.content)

    if raw.startswith(b"["):
        _check_parts(raw, f"{where}.content", _INPUT_PART)
    elif not raw.startswith(b'"'):
        advice = f"write a string, or an array of parts as in [{_INPUT_PART}]"
        raise _fault(f"{where}.content", shown(raw), advice)


def _check_text(raw: bytes, key: str) -> None:
    """Raise `BadInput` unless *raw* is a string with something in it."""
    if not raw.startswith(b'"'):
        raise _fault(key, shown(raw), "write a string or an array")

    if is_blank(raw):
        raise _fault(key, "empty", "write some text")


def _check_inputs(raw: bytes, key: str) -> None:
    inputs = [bytes(one) for one in _arrays.decode(raw)]
    _check_several(inputs, key)

    if inputs[0][:1] not in (b'"', b"["):
        _check_tokens(raw, inputs, key)
        return

    if len(inputs) > MAX_INPUTS:
        reason = (
            f"{key} has {len(inputs):,} inputs, a request takes {MAX_INPUTS:,}; "
            f"spread them over several rows"
        )
        raise BadInput(reason, code="too_many_inputs", key=key)

    for index, one in enumerate(inputs):
        where = f"{key}[{index}]"

        if inputs[0].startswith(b'"'):
            _check_string(one, where)
        elif one.startswith(b"["):
            tokens = [bytes(token) for token in _arrays.decode(one)]
            _check_several(tokens, where)
            _check_tokens(one, tokens, where)
        else:
            raise _fault(where, described(one), "write an array of tokens, as the first one is")


def _check_several(inputs: list[bytes], key: str) -> None:
    if not inputs:
        raise _fault(key, "empty", "write some text")


def _check_string(raw: bytes, where: str) -> None:
    if not raw.startswith(b'"'):
        raise _fault(where, described(raw), "write a string, as the first one is")

    if is_blank(raw):
        raise _fault(where, "empty", "write some text or leave it out")


def _check_tokens(raw: bytes, tokens: list[bytes], key: str) -> None:
    """Raise `BadInput` unless all of *tokens*, the entries of *raw*, are whole numbers."""
    try:
        _tokens.decode(raw)
    except msgspec.ValidationError as error:
        for index, token in enumerate(tokens):
            if not token.lstrip(b"-").isdigit():
                advice = "write strings, or the whole numbers that are tokens"
                raise _fault(f"{key}[{index}]", described(token), advice) from error

        raise _fault(key, "an array of impossible numbers", "write the tokens") from error


def _check_parts_or_texts(url: str, raw: bytes, key: str) -> None:
    """Check the array that a completion or a moderation is of.

    The first may be of tokens and of much else, the second is of texts or of parts.
    """
    found = [bytes(one) for one in _arrays.decode(raw)]
    _check_several(found, key)

    if url == MODERATIONS and not all(one.startswith(b'"') for one in found):
        _check_parts(raw, key, _PART)
