"""Requests as the batch API takes them: endpoints, lines, inputs.

Pure; raises nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
COMPLETIONS = "/v1/completions"
MODERATIONS = "/v1/moderations"

PROMPT_FIELDS = {
    CHAT: "messages",
    RESPONSES: "input",
    EMBEDDINGS: "input",
    COMPLETIONS: "prompt",
    MODERATIONS: "input",
}
"""Every endpoint we make requests for, and where its body takes the prompt."""

# Legal inside JSON, but some readers of lines end one there: a lone carriage return between tokens,
# and the line separators of Unicode inside strings.
_LINE_ENDS = (
    (b"\r", b" "),
    (b"\xc2\x85", rb"\u0085"),
    (b"\xe2\x80\xa8", rb"\u2028"),
    (b"\xe2\x80\xa9", rb"\u2029"),
)

_arrays = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, all but its name."""

    url: str
    model: str
    inputs: int
    """Embedding inputs; 0 at other endpoints."""
    fields: bytes
    """The members of its line after `custom_id`: JSON text without the braces."""

    def line(self, name: str) -> bytes:
        """Return the request's line under the wire id *name*, with its line end.

        The JSON value is what was spliced together; only what may pass for a line end is escaped.
        """
        text = b'{"custom_id":"%s",%s}' % (name.encode(), self.fields)

        for character, replacement in _LINE_ENDS:
            text = text.replace(character, replacement)

        return text + b"\n"


def count_inputs(content: bytes) -> int:
    """Return how many embedding inputs a body's `input` is (OpenAI Batch guide: 50,000 a batch).

    A string or an array of tokens is one, an array of those is as many as it has.
    """
    if not content.startswith(b"["):
        return 1

    parts = _arrays.decode(content)
    is_tokens = bool(parts) and bytes(parts[0])[:1] not in (b'"', b"[")

    return 1 if is_tokens else len(parts)


def member(name: str, raw: bytes) -> bytes:
    """Return one member of a JSON object; *raw* is its value as JSON text."""
    return msgspec.json.encode(name) + b":" + raw
