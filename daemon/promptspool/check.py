"""Check: what `run` would do with a file, found by doing the same up to the first upload.

The file is planned into a temporary folder by the code that plans jobs, so what is said here is
what would be submitted. Nothing is sent and nothing in the spool is touched. Raises `ConfigError`
(environment) for a file that is not there or cannot be read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import msgspec

from promptspool import intake, planning, schema
from promptspool.claims import DEFAULT_PROFILE, mint
from promptspool.errors import BadInput, ConfigError
from promptspool.inbox import is_ignored
from promptspool.intake.request import BYTES_A_TOKEN
from promptspool.model import shown
from promptspool.pricing import Prices, estimated_tokens, is_too_small
from promptspool.settings import profile_for
from promptspool.spool import SIDECAR_SUFFIX, TOO_LONG, Spool, sidecar_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from promptspool.pricing import Cost
    from promptspool.settings import ProfileSettings, Settings
    from promptspool.wire import Manifest, RowComplaint

MAX_SHOWN = 20
"""Bad rows that are shown; the rest are counted."""


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
    costs: dict[str, Cost | None] = field(default_factory=dict)
    """What the requests of each model may cost, None where its price is not known."""
    first_request: bytes | None = None
    """The first line that would be submitted."""

    @property
    def is_clean(self) -> bool:
        """Tell whether nothing of the file would be rejected."""
        return self.reason is None and self.complaint_count == 0


def checked(
    settings: Settings, path: Path, *, profile: str | None, output_tokens: int | None = None
) -> Checked:
    """Plan the file at *path* and return what was found.

    *profile* is None for that of the inbox folder which the file is in, else the default one.
    *output_tokens* takes the place of the profile's `answer_tokens`, unless it is None.
    """
    if not path.is_file():
        raise ConfigError(str(path), "there is no such file" if not path.exists() else "no file")

    name = profile or _profile_of(settings, path)
    result = Checked(path=path, profile_name=name)

    with TemporaryDirectory(prefix="promptspool-check-") as folder:
        try:
            _plan(settings, path, Path(folder), result, output_tokens)
        except BadInput as error:
            result.reason = error.reason
        except OSError as error:
            place = error.filename or path
            raise ConfigError(str(path), f"{place}: {error.strerror or error}") from error

        for complaint in intake.complaints(Path(folder)):
            result.complaint_count += 1

            if result.complaint_count <= MAX_SHOWN:
                result.complaints.append(complaint)

        if result.manifest is not None and result.profile is not None:
            batches = result.manifest.batches
            base_url = settings.providers[result.profile.provider].base_url
            result.costs = Prices(settings.prices).estimates(batches, base_url=base_url)

            with (Path(folder) / f"{batches[0].id}.requests.jsonl").open("rb") as file:
                result.first_request = file.readline()

    return result


def _profile_of(settings: Settings, path: Path) -> str:
    """Return the profile that a file has by where it is."""
    inbox = Spool(settings.spool.path).inbox.resolve()
    parts = path.resolve().parts

    if parts[: len(inbox.parts)] == inbox.parts and len(parts) > len(inbox.parts) + 1:
        return parts[len(inbox.parts)]

    return DEFAULT_PROFILE


def _plan(
    settings: Settings, path: Path, folder: Path, result: Checked, output_tokens: int | None
) -> None:
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

    if output_tokens is not None:
        profile = profile.model_copy(update={"answer_tokens": output_tokens})

    result.profile = profile
    dropped = planning.dropped(
        settings,
        settings.providers[profile.provider],
        profile,
        original=path,
        source=shown(os.fsencode(path.name)),
        digest="",  # nobody will ask
        job=mint(0.0),
        give_up_at=0.0,
    )
    result.manifest = planning.planned(dropped, folder)


def told(result: Checked) -> Iterator[str]:
    """Yield what people are told of a file, line by line."""
    name = shown(os.fsencode(result.path))

    if result.reason is not None:
        yield f"{name}: would be rejected (profile {result.profile_name})"
        yield f"  {result.reason}"

    if result.manifest is not None and result.profile is not None:
        yield from _told_plan(name, result, result.manifest, result.profile)
        yield from _told_cost(result.manifest, result.profile, result.costs)

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


def _told_cost(
    manifest: Manifest, profile: ProfileSettings, costs: Mapping[str, Cost | None]
) -> Iterator[str]:
    for model, tokens in estimated_tokens(manifest.batches).items():
        cost = costs[model]
        yield (
            f"  {model}: about {tokens.input:,} tokens in and {tokens.output:,} out; "
            f"{'its price is not known' if cost is None else _priced(cost)}"
        )

    yield (
        f"  an estimate: {BYTES_A_TOKEN} bytes a token, {profile.answer_tokens} tokens an answer "
        f"that is not limited, images not counted"
    )

    if is_too_small(costs.values()):
        yield (
            "  too small to be worth a batch: it saves less than a cent and may take a day; "
            "nothing keeps you from dropping it"
        )


def _priced(cost: Cost) -> str:
    """Return what a batch may cost; at most that, where the price of batches is not known."""
    price = f"${cost.batch_usd:,.4f}"
    as_of = "undated prices" if cost.as_of is None else f"prices of {cost.as_of}"

    if cost.is_upper_bound:
        return f"at most {price} as a batch, for which no price is known ({as_of})"

    return f"about {price} as a batch, ${cost.standard_usd:,.4f} at the standard price ({as_of})"


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
