"""Requests as the batch API takes them: endpoints, lines, inputs, and what they may cost.

Pure; raises nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

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

_TEXT_FIELDS = frozenset(
    {
        "messages",
        "input",
        "prompt",
        "instructions",
        "tools",
        "functions",
        "response_format",
        "text",
    }
)
"""Where a body has what the model reads."""

_LIMIT_FIELDS = frozenset({"max_completion_tokens", "max_output_tokens", "max_tokens"})
"""Where a body says how many tokens its answer may have."""

BYTES_A_TOKEN = 3
"""English prose has about 4, code and other scripts fewer: this errs on the side of too many."""

_BASE64 = b";base64,"
_MAX_HEAD = 100
"""Bytes of a data URL before that, its quote included: none has so many."""

_MAX_DIGITS = 9
"""Of a limit; more tokens than that are a joke."""

# Legal inside JSON, but some readers of lines end one there: line ends between tokens, which
# cannot stand in strings, and the line separators of Unicode inside strings.
_ASCII_ENDS = ((b"\n", b" "), (b"\r", b" "))
_LINE_ENDS = (
    *_ASCII_ENDS,
    (b"\xc2\x85", rb"\u0085"),
    (b"\xe2\x80\xa8", rb"\u2028"),
    (b"\xe2\x80\xa9", rb"\u2029"),
)

WITHOUT_TEXT = (EMBEDDINGS, MODERATIONS)
"""The endpoints whose answers take no tokens."""

_arrays = msgspec.json.Decoder(list[msgspec.Raw])


class Request(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request, all but its name."""

    url: str
    model: str
    inputs: int
    """Embedding inputs; 0 at other endpoints."""
    fields: bytes
    """The members of its line after `custom_id`: JSON text without the braces."""
    text_bytes: int = 0
    """What the model reads of it; images count nothing, what they take is the provider's secret."""
    max_output: int | None = None
    """Tokens that its answer may have; None if it does not say."""

    def line(self, name: str) -> bytes:
        """Return the request's line under the wire id *name*, with its line end.

        The JSON value is what was spliced together; only what may pass for a line end is escaped.
        """
        return b'{"custom_id":"%s",%s}\n' % (name.encode(), escaped(self.fields))


def escaped(text: bytes) -> bytes:
    """Return JSON text with all that may pass for a line end replaced by what means the same."""
    # Each replacement reads the whole text, and most texts need none.
    for character, replacement in _ends_in(text):
        text = text.replace(character, replacement)

    return text


def has_line_end(text: bytes) -> bool:
    """Tell whether `escaped` changes a text."""
    return any(character in text for character, _ in _ends_in(text))


def _ends_in(text: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return the line ends that a text may have, and what they are replaced by."""
    # One byte is found fifty times as fast as three are (measured).
    has_others = not text.isascii() and (b"\xc2" in text or b"\xe2" in text)

    return _LINE_ENDS if has_others else _ASCII_ENDS


def count_inputs(content: bytes) -> int:
    """Return how many embedding inputs a body's `input` is (OpenAI Batch guide: 50,000 a batch).

    A string or an array of tokens is one, an array of those is as many as it has.
    """
    if not content.startswith(b"["):
        return 1

    parts = _arrays.decode(content)
    is_tokens = bool(parts) and bytes(parts[0])[:1] not in (b'"', b"[")

    return 1 if is_tokens else len(parts)


def text_bytes(content: bytes) -> int:
    """Return how many bytes of a value are text: all but what is in its data URLs."""
    found = len(content)
    end = 0

    while (mark := content.find(_BASE64, end)) >= 0:
        end = mark + len(_BASE64)
        start = content.rfind(b'"', max(mark - _MAX_HEAD, 0), mark)

        # A quote after a backslash is one in a text, which may well speak of data URLs.
        if content.startswith(b'"data:', start) and content[start - 1 : start] != b"\\":
            end = content.find(b'"', end)
            found -= end - start - 1

    return found


def read_body(members: Mapping[str, bytes | msgspec.Raw]) -> tuple[int, int | None]:
    """Return how many bytes of a body the model reads, and how many tokens it may answer with.

    The latter is None if the body does not say.
    """
    size, limit = 0, None

    for name, raw in members.items():
        if name in _TEXT_FIELDS:
            size += text_bytes(bytes(raw))
        elif name in _LIMIT_FIELDS:
            digits = bytes(raw)

            if len(digits) <= _MAX_DIGITS and digits.isdigit():
                limit = int(digits) or limit

    return size, limit
