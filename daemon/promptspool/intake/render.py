"""Render: the columns of a row become one request of the batch API.

A row brings a ready request, `messages`, `input`, or what the profile makes a prompt of. JSON that
a row brings is spliced in as it was written: what its author chose (key order, number formats) is
what the model gets. Pure, but for the files that rows may name. Raises `BadInput` (bad data) for a
row, or for a profile that fits none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from promptspool.errors import BadInput
from promptspool.intake.brought import array_in_text, is_ready, ready_request
from promptspool.intake.frame import Frame, Plain, odd_prompts
from promptspool.intake.layout import PROMPT_NAMES, checked_id, found_id, found_ids, layout
from promptspool.intake.messages import brings_system, check_content
from promptspool.intake.params import encoded_params
from promptspool.intake.parts import image_urls
from promptspool.intake.request import (
    CHAT,
    EMBEDDINGS,
    PROMPT_FIELDS,
    RESPONSES,
    Request,
    count_inputs,
    read_body,
    text_bytes,
)
from promptspool.intake.templates import RowTemplate
from promptspool.intake.values import MAX_SHOWN, described, is_blank, listed, member, text_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from promptspool.intake.layout import Layout
    from promptspool.intake.rows import Block, Columns, Files, Value
    from promptspool.settings import ProfileSettings

MAX_NAMES = 20
"""Columns that `Renderer.prompt_columns` remembers."""

_NUMBER = tuple(b"%c" % byte for byte in b"-0123456789")


class Renderer:
    """Makes requests as one profile says."""

    def __init__(self, profile: ProfileSettings, *, files: Files | None = None) -> None:
        """Prepare everything that is the same for all rows.

        *files* are those that rows may name as images; None where there are none. Raises
        `BadInput` for the whole file if the profile cannot be followed.
        """
        self.prompt_columns: list[str] = []
        self._url = profile.endpoint
        self._model = profile.model
        self._files = files
        self._prompt = RowTemplate(profile.prompt, key="prompt") if profile.prompt else None
        self._id = RowTemplate(profile.id, key="id") if profile.id else None
        self._is_structured = profile.response_schema is not None
        self._is_one_vector = "npy" in profile.answers

        has_messages = self._url in (CHAT, RESPONSES)
        self._images = profile.images if has_messages else ()
        self._brought = _brought_names(self._url)
        self._names: tuple[str, ...] = ()
        self._layout = layout((), brought=(), images=())

        # Only these two endpoints have a place for it.
        system = profile.system if has_messages else None
        self._system = msgspec.json.encode(system) if system else None
        params = encoded_params(profile)
        self._params = b"".join(b"," + member(name, raw) for name, raw in params.items())
        self._params_text_bytes, self._max_output = read_body(params)
        self._frame = self._frame_of_plain()

    def user_id(self, columns: Columns) -> str | None:
        """Return the user's own id of a row, None if it has none.

        Raises `BadInput` if the profile's template for it fails, or if it is no id.
        """
        if self._id is not None:
            text = self._id.render(columns).strip()
            return checked_id(text, key="id") if text else None

        ids = self._layout_of(columns).ids

        return found_id(columns, ids) if ids else None

    def request(self, columns: Columns) -> Request:
        """Return the request that a row stands for; raises `BadInput` if it stands for none."""
        try:
            return self._request(columns, self._layout_of(columns))
        except RecursionError as error:
            raise BadInput("the JSON is nested too deeply", code="invalid_json") from error
        except msgspec.DecodeError as error:
            raise BadInput(f"broken JSON: {error}", code="invalid_json") from error

    def plain(self, block: Block) -> Plain | None:
        """Return what the rows of a block ask for, None if they are to be looked at one by one.

        What it says of a row that is not odd is what `user_id` and `request` say.
        """
        columns, count = block.columns, len(block.lines)
        where = self._layout_of(columns)
        is_made = bool(where.brought or where.images) or ("url" in columns and "body" in columns)

        if is_made or self._id is not None:
            return None

        contents: Sequence[Value] | None = None

        if self._prompt is not None:
            contents = self._prompt.column(columns, count)
        elif where.prompt is not None:
            contents = columns[where.prompt]

        ids = found_ids(columns, where.ids) if where.ids else (None, frozenset[int]())

        if contents is None or ids is None:
            return None

        is_ascii = block.is_ascii and self._prompt is None
        odd = odd_prompts(contents, is_ascii=is_ascii) | ids[1]

        if self._prompt is None and where.prompt is not None and len(odd) < count:
            self._note(where.prompt)

        return Plain(self._frame, contents, list(map(len, contents)), ids[0], odd)

    def _request(self, columns: Columns, where: Layout) -> Request:
        if is_ready(columns, has_template=self._prompt is not None):
            return self._ready(columns)

        if where.brought and (name := self._brings(columns, where)):
            _check_no_image(columns, where, name)

            return self._made_of(name, columns)

        prompt = self._prompt_text(columns, where)

        if where.images and (urls := image_urls(columns, where.images, self._files)):
            content = _with_images(self._url, prompt, urls)

            return self._frame.request(content, text_bytes(content))

        return self._frame.request(prompt, len(prompt))

    def _layout_of(self, columns: Collection[str]) -> Layout:
        """Return where a row has what; most rows have it where the row before them has it."""
        names = tuple(columns)

        if names != self._names:
            self._layout = layout(names, brought=self._brought, images=self._images)
            self._names = names

        return self._layout

    def _ready(self, columns: Columns) -> Request:
        if self._is_structured:
            reason = (
                "the row is a ready request, which the profile's response_schema cannot be put "
                "into; bring messages or a prompt, or drop the file into a profile without one"
            )
            raise BadInput(reason, code="ready_request")

        request = ready_request(columns)
        self._check_vectors(request.inputs, "body.input")

        return request

    def _brings(self, columns: Columns, where: Layout) -> str | None:
        """Return the column that brings messages or an input, None if the row has a prompt.

        With a template, only an array is brought: what texts are for is the template's to say.
        """
        if self._prompt is not None:
            given = [name for name in where.brought if columns[name].startswith(b"[")]
        else:
            given = [name for name in where.brought if not is_blank(columns[name])]

            if (prompt := where.named_prompt) and not is_blank(columns[prompt]):
                given.append(prompt)

            # Nothing is there at all: what is wrong is said of the likeliest column.
            given = given or [where.brought[0]]

        if len(given) > 1:
            reason = f"the row has both {given[0]!r} and {given[1]!r}; leave one of them empty"
            raise BadInput(reason, code="ambiguous_row", key=given[1])

        return given[0] if given and given[0] in where.brought else None

    def _made_of(self, name: str, columns: Columns) -> Request:
        """Put what the column *name* brings into a request."""
        content = columns[name]
        url: str = self._url

        if _is_messages(name):
            content = array_in_text(content, key=name)
            # A response would take a text too, but not under this name.
            url = url if content.startswith(b"[") else CHAT

        check_content(url, content, key=name)
        self._note(name)
        inputs = count_inputs(content) if self._url == EMBEDDINGS else 0
        self._check_vectors(inputs, name)
        model = text_of(columns.get("model", b"")) or self._model
        is_list = content.startswith(b"[")
        system = None if is_list and self._system and brings_system(content) else self._system

        if self._url == CHAT:
            content = b"[" + _system_message(system) + content[1:]
            system = None

        after = (_instructions(system), self._params, b"}")
        size = text_bytes(content) + len(system or b"") + self._params_text_bytes

        return Request(
            url=self._url,
            model=model,
            inputs=inputs,
            fields=b"".join((_head(self._url, model), content, *after)),
            text_bytes=size,
            max_output=self._max_output,
        )

    def _frame_of_plain(self) -> Frame:
        """Return what the requests of plain rows share."""
        before, after = _head(self._url, self._model), self._params + b"}"
        size = self._params_text_bytes

        if self._url == CHAT:
            start, end = b"[" + _system_message(self._system) + b'{"role":"user","content":', b"}]"
            size += len(start) + len(end)
            before, after = before + start, end + after
        else:
            size += len(self._system or b"")
            after = _instructions(self._system) + after

        return Frame(
            url=self._url,
            model=self._model,
            inputs=1 if self._url == EMBEDDINGS else 0,
            before=before,
            after=after,
            text_bytes=size,
            max_output=self._max_output,
        )

    def _prompt_text(self, columns: Columns, where: Layout) -> bytes:
        """Return the prompt of a plain row as a JSON string."""
        name = "prompt"

        if self._prompt is not None:
            raw = msgspec.json.encode(self._prompt.render(columns))
        elif where.prompt is None:
            raise _missing_prompt(columns, where)
        else:
            name = where.prompt
            raw = columns[name]
            raw = raw if raw.startswith(b'"') else _number_text(raw, name, self._url)
            self._note(name)

        if not text_of(raw).strip():
            reason = "the prompt is empty; write some text"
            raise BadInput(reason, code="empty_prompt", key=name)

        return raw

    def _note(self, name: str) -> None:
        if name not in self.prompt_columns and len(self.prompt_columns) < MAX_NAMES:
            self.prompt_columns.append(name)

    def _check_vectors(self, inputs: int, key: str) -> None:
        if self._is_one_vector and inputs > 1:
            reason = (
                f'{key} holds {inputs:,} inputs, and the profile\'s answers = ["npy"] has one '
                f"vector a row; spread them over several rows"
            )
            raise BadInput(reason, code="too_many_inputs", key=key)


def _check_no_image(columns: Columns, where: Layout, brought: str) -> None:
    """Raise `BadInput` for an image that would have no place beside what a row brings."""
    for name in where.images:
        if not is_blank(columns[name]):
            reason = f"the row has both {brought!r} and {name!r}; put the image into {brought!r}"
            raise BadInput(reason, code="ambiguous_row", key=name)


def _brought_names(url: str) -> tuple[str, ...]:
    """Return what a row may bring to *url*, the likeliest first."""
    if url == RESPONSES:
        return ("messages", "input")

    field = PROMPT_FIELDS[url]

    return (field,) if field in ("messages", "input") else ()


def _is_messages(name: str) -> bool:
    return name.strip().casefold() == "messages"


def _head(url: str, model: str) -> bytes:
    """Return a request's fields up to where its content begins."""
    start = b'"method":"POST","url":"%s","body":{"model":%s,"%s":'

    return start % (url.encode(), msgspec.json.encode(model), PROMPT_FIELDS[url].encode())


def _system_message(system: bytes | None) -> bytes:
    return b'{"role":"system","content":%s},' % system if system is not None else b""


def _instructions(system: bytes | None) -> bytes:
    return b',"instructions":' + system if system is not None else b""


def _with_images(url: str, prompt: bytes, urls: list[bytes]) -> bytes:
    """Return a content of several parts: the prompt, then the images."""
    if url == CHAT:
        pieces = [b'[{"type":"text","text":', prompt, b"}"]
        before, after, end = b',{"type":"image_url","image_url":{"url":', b"}}", b"]"
    else:
        pieces = [b'[{"role":"user","content":[{"type":"input_text","text":', prompt, b"}"]
        # The API's own default, but some of those who imitate it refuse a part without it.
        before, after, end = b',{"type":"input_image","detail":"auto","image_url":', b"}", b"]}]"

    for one in urls:
        pieces += (before, one, after)

    # Joined once, since images are large.
    return b"".join((*pieces, end))


def _number_text(raw: bytes, name: str, url: str) -> bytes:
    """Return a number as the JSON string of its text; raises `BadInput` for what is none."""
    if raw.startswith(_NUMBER):
        return b'"%s"' % raw

    if _is_messages(name) and raw.startswith(b"["):
        advice = f"{url} takes none; set the profile's endpoint to {CHAT} or {RESPONSES}"
    elif url in (CHAT, RESPONSES) and raw.startswith(b"["):
        advice = "write a string, or name it messages"
    else:
        advice = "write a string"

    raise BadInput(f"{name} is {described(raw)}; {advice}", code="invalid_prompt", key=name)


def _missing_prompt(columns: Columns, where: Layout) -> BadInput:
    known = f"{', '.join(PROMPT_NAMES[:-1])} or {PROMPT_NAMES[-1]}"
    others = (name for name in columns if name not in where.ids and name not in where.images)
    example = next((name for name in others if name.isidentifier()), "review")[:MAX_SHOWN]
    reason = (
        f"found no column {known}, but {listed(columns)}; rename one, or write "
        f'prompt = "{{{{ {example} }}}}" in the profile, or in NAME.toml beside the file'
    )

    return BadInput(reason, code="missing_prompt")
