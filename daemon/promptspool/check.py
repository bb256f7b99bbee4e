"""Check: what `run` would do with a file, found by doing the same up to the first upload.

The file is planned into a temporary folder by the code that plans jobs, so what is said here is
what would be submitted. Nothing is sent and nothing in the spool is touched. Raises `ConfigError`
(environment) for a file that is not there or cannot be read.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec

from promptspool import intake, planning, schema
from promptspool.claims import DEFAULT_PROFILE, mint
from promptspool.errors import BadInput, ConfigError
from promptspool.inbox import is_ignored
from promptspool.intake.request import EMBEDDINGS, MODERATIONS
from promptspool.model import shown
from promptspool.pricing import PRICES_AS_OF, Cost, Tokens, cost
from promptspool.settings import profile_for
from promptspool.spool import SIDECAR_SUFFIX, TOO_LONG, Spool, sidecar_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from promptspool.settings import ProfileSettings, Settings
    from promptspool.wire import Manifest, RowComplaint

MAX_SHOWN = 20
"""Bad rows that are shown; the rest are counted."""

BYTES_A_TOKEN = 3
"""English prose has about 4, code and other scripts fewer: this errs on the side of too many."""

WORTH_USD = 0.01
"""A batch that saves less is not worth waiting a day for."""

_DATA_URL = re.compile(rb'(?<!\\)"data:[a-z]+/[a-z0-9.+-]+;base64,[A-Za-z0-9+/=]*"')


class _Body(msgspec.Struct):
    """What of a body costs tokens."""

    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    # Of any type: what the provider makes of others is not known.
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None


class _Line(msgspec.Struct):
    body: _Body


_lines = msgspec.json.Decoder(_Line)


@dataclass(slots=True, kw_only=True)
class Estimate:
    """What the requests of one model may take: tokens, and dollars where the price is known."""

    model: str
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def cost(self) -> Cost | None:
        """Return the estimated cost, None for a model without a known price."""
        return cost(self.model, Tokens(input=self.input_tokens, output=self.output_tokens))


@dataclass(slots=True, kw_only=True)
class Checked:
    """What would become of one file."""

    path: Path
    profile_name: str
    profile: ProfileSettings | None = None
    manifest: Manifest | None = None
    """None when the file would be rejected."""
    sidecar: str | None = None
    """The name of the file beside it that changes its profile."""
    reason: str | None = None
    """Why it would be rejected, None if it would not."""
    complaints: list[RowComplaint] = field(default_factory=list)
    """The first bad rows."""
    complaint_count: int = 0
    estimates: list[Estimate] = field(default_factory=list)
    first_request: bytes | None = None
    """The first line that would be submitted."""

    @property
    def is_clean(self) -> bool:
        """Tell whether nothing of the file would be rejected."""
        return self.reason is None and self.complaint_count == 0


def checked(settings: Settings, path: Path, *, profile: str | None, output_tokens: int) -> Checked:
    """Plan the file at *path* and return what was found.

    *profile* is None for that of the inbox folder which the file is in, else the default one.
    *output_tokens* is assumed for each answer that the request does not limit.
    """
    if not path.is_file():
        raise ConfigError(str(path), "there is no such file" if not path.exists() else "no file")

    name = profile or _profile_of(settings, path)
    result = Checked(path=path, profile_name=name)

    with TemporaryDirectory(prefix="promptspool-check-") as folder:
        try:
            _plan(settings, path, Path(folder), result)
        except BadInput as error:
            result.reason = error.reason
        except OSError as error:
            place = error.filename or path
            raise ConfigError(str(path), f"{place}: {error.strerror or error}") from error

        for complaint in intake.complaints(Path(folder)):
            result.complaint_count += 1

            if result.complaint_count <= MAX_SHOWN:
                result.complaints.append(complaint)

        if result.manifest is not None:
            _estimate(result, Path(folder), output_tokens)

    return result


def _profile_of(settings: Settings, path: Path) -> str:
    """Return the profile that a file has by where it is."""
    inbox = Spool(settings.spool.path).inbox.resolve()
    parts = path.resolve().parts

    if parts[: len(inbox.parts)] == inbox.parts and len(parts) > len(inbox.parts) + 1:
        return parts[len(inbox.parts)]

    return DEFAULT_PROFILE


def _plan(settings: Settings, path: Path, folder: Path, result: Checked) -> None:
    if is_ignored(path.name) or path.name.endswith(SIDECAR_SUFFIX):
        raise BadInput(
            "a file of this name is left alone: it is hidden, unfinished or a sidecar; rename it"
        )

    if Spool.is_too_long(os.fsencode(path.name)):
        raise BadInput(TOO_LONG)

    sidecar = sidecar_of(path)
    result.sidecar = sidecar.name if sidecar.exists() else None

    try:
        profile = profile_for(
            settings, result.profile_name, sidecar if result.sidecar else None, sidecar.name
        )
    except ConfigError as error:
        raise BadInput(str(error), code="bad_sidecar") from error

    if profile is None:
        raise BadInput(planning.unknown_profile(result.profile_name, settings))

    result.profile = profile
    dropped = planning.dropped(
        settings,
        settings.providers[profile.provider],
        profile,
        original=path,
        source=shown(os.fsencode(path.name)),
        sha256="",  # nobody will ask
        job=mint(0.0),
        give_up_at=0.0,
    )
    result.manifest = planning.planned(dropped, folder)


def _estimate(result: Checked, folder: Path, output_tokens: int) -> None:
    """Read the request files through, for what they may cost and for the first request."""
    assert result.manifest is not None  # noqa: S101 - the caller has looked
    estimates: dict[str, Estimate] = {}

    for batch in result.manifest.batches:
        estimate = estimates.setdefault(batch.model, Estimate(model=batch.model))
        has_answer = batch.endpoint not in (EMBEDDINGS, MODERATIONS)

        with (folder / f"{batch.id}.requests.jsonl").open("rb", buffering=1 << 20) as file:
            for line in file:
                result.first_request = result.first_request or line
                _count(estimate, line, output_tokens if has_answer else 0)

    result.estimates = list(estimates.values())


def _count(estimate: Estimate, line: bytes, output_tokens: int) -> None:
    """Add one request; an image counts nothing, since what it takes is the provider's secret."""
    body = _lines.decode(_DATA_URL.sub(b'""', line)).body
    text = (body.messages, body.input, body.prompt, body.instructions)
    limits = (body.max_completion_tokens, body.max_output_tokens, body.max_tokens)
    limit = next((one for one in limits if isinstance(one, int) and one > 0), None)
    estimate.requests += 1
    estimate.input_tokens += math.ceil(sum(len(bytes(raw)) for raw in text) / BYTES_A_TOKEN)
    estimate.output_tokens += min(limit, output_tokens) if limit else output_tokens


def told(result: Checked, *, output_tokens: int) -> Iterator[str]:
    """Yield what people are told of a file, line by line."""
    name = shown(os.fsencode(result.path))

    if result.reason is not None:
        yield f"{name}: would be rejected (profile {result.profile_name})"
        yield f"  {result.reason}"

    if result.manifest is not None and result.profile is not None:
        yield from _told_plan(name, result, result.manifest, result.profile)
        yield from _told_cost(result, output_tokens)

    if result.complaint_count:
        yield from _told_complaints(result)

    if result.first_request is not None:
        yield "  the first request:"
        text = msgspec.json.format(result.first_request.strip(), indent=2).decode()
        yield from (f"    {line}" for line in text.splitlines())


def _told_plan(
    name: str, result: Checked, manifest: Manifest, profile: ProfileSettings
) -> Iterator[str]:
    requests = manifest.rows - manifest.bad_rows
    size = sum(batch.size_bytes for batch in manifest.batches)
    yield (
        f"{name}: {manifest.format}, {_counted(manifest.rows, 'row')}, "
        f"profile {result.profile_name}{f' with {result.sidecar}' if result.sidecar else ''} "
        f"({profile.provider}, {profile.endpoint})"
    )

    for key, note in manifest.notes.items():
        yield f"  {key}: {note}"

    if manifest.prompt_columns:
        yield f"  prompt: from the column {', '.join(manifest.prompt_columns)}"

    if profile.response_schema is not None:
        reason = schema.strictness(profile.response_schema)
        yield f"  structured outputs: {'strict' if reason is None else f'not strict: {reason}'}"

    yield (
        f"  {_counted(requests, 'request')} in {_counted(len(manifest.batches), 'batch', 'es')}, "
        f"{size:,} bytes"
    )


def _told_cost(result: Checked, output_tokens: int) -> Iterator[str]:
    saved = 0.0

    for estimate in result.estimates:
        found = estimate.cost
        tokens = (
            f"  {estimate.model}: about {estimate.input_tokens:,} tokens in and "
            f"{estimate.output_tokens:,} out"
        )

        if found is None:
            yield f"{tokens}; its price is not known"
        else:
            saved += found.saved_usd
            yield (
                f"{tokens}; about ${found.batch_usd:,.4f} as a batch, "
                f"${found.standard_usd:,.4f} at the standard price"
            )

    yield (
        f"  an estimate: {BYTES_A_TOKEN} bytes a token, {output_tokens} tokens an answer unless "
        f"limited to fewer, list prices of {PRICES_AS_OF}"
    )

    if saved < WORTH_USD and all(estimate.cost is not None for estimate in result.estimates):
        yield (
            f"  too small to be worth a batch: it saves about ${saved:.4f} and may take "
            f"a day; nothing keeps you from dropping it"
        )


def _told_complaints(result: Checked) -> Iterator[str]:
    profile = result.profile
    fate = "would become errors" if result.reason is None and profile is not None else "at fault"
    yield f"  {_counted(result.complaint_count, 'row')} {fate}:"

    for one in result.complaints:
        where = f"line {one.line}" if one.document is None else one.document
        yield f"    {where}{'' if one.key is None else f', {one.key}'}: {one.message}"

    if hidden := result.complaint_count - len(result.complaints):
        yield f"    and {hidden:,} more"


def _counted(count: int, word: str, plural: str = "s") -> str:
    return f"{count:,} {word}{'' if count == 1 else plural}"
