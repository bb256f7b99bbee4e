"""Requests as the batch API takes them: endpoints, lines, inputs.

Pure; raises nothing.
"""

from __future__ import annotations

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

# Legal inside JSON, but some readers of lines end one there: line ends between tokens, which
# cannot stand in strings, and the line separators of Unicode inside strings.
_ASCII_ENDS = ((b"\n", b" "), (b"\r", b" "))
_LINE_ENDS = (
    *_ASCII_ENDS,
    (b"\xc2\x85", rb"\u0085"),
    (b"\xe2\x80\xa8", rb"\u2028"),
    (b"\xe2\x80\xa9", rb"\u2029"),
)

_arrays = msgspec.json.Decoder(list[msgspec.Raw])


class Request(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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
        fields = self.fields

        # Each replacement reads the whole text, and most texts need none.
        for character, replacement in _ASCII_ENDS if fields.isascii() else _LINE_ENDS:
            fields = fields.replace(character, replacement)

        return b'{"custom_id":"%s",%s}\n' % (name.encode(), fields)


def count_inputs(content: bytes) -> int:
    """Return how many embedding inputs a body's `input` is (OpenAI Batch guide: 50,000 a batch).

    A string or an array of tokens is one, an array of those is as many as it has.
    """
    if not content.startswith(b"["):
        return 1

    parts = _arrays.decode(content)
    is_tokens = bool(parts) and bytes(parts[0])[:1] not in (b'"', b"[")

    return 1 if is_tokens else len(parts)
