"""What the values of the configuration may look like.

The messages say what to write instead; none repeats a value that could be a key.
"""

from __future__ import annotations

import codecs
import ipaddress
import re
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

import jinja2
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from promptspool.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFLICT: Final = "conflict"
"""The type of an error about values that are good by themselves, but not together."""

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_LIMIT = 10**15
MAX_PORT = 65_535
_QUANTITY = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Za-z]*)\s*")


def conflict(conflicts: Sequence[tuple[tuple[str, ...], str]]) -> PydanticCustomError:
    """Return the error of a section in which each of these keys is to be changed, and why."""
    text = "; ".join(f"{'.'.join(where)}: {reason}" for where, reason in conflicts)

    return PydanticCustomError(CONFLICT, "{text}", {"text": text, "conflicts": tuple(conflicts)})


def _seconds(value: object) -> object:
    match value:
        case bool():
            pass
        case int() | float() if abs(value) < _LIMIT:  # and so neither infinite nor NaN
            return float(value)
        case str() if (found := _QUANTITY.fullmatch(value)) and (found[2] or "s") in SECONDS:
            return float(found[1]) * SECONDS[found[2] or "s"]

    raise ValueError('write a duration such as "200ms", "10s", "2m", "24h" or "7d"')


def _bytes(value: object) -> object:
    match value:
        case bool():
            pass
        case int() if abs(value) < _LIMIT:
            return value
        case str() if (found := _QUANTITY.fullmatch(value)) and (found[2].upper() or "B") in BYTES:
            return round(float(found[1]) * BYTES[found[2].upper() or "B"])

    raise ValueError('write a size such as "64KB", "190MB" or "1GB" (1 MB is 1,000,000 bytes)')


def is_duration(mark: object) -> bool:
    """Tell whether this is what makes a field a duration."""
    return isinstance(mark, BeforeValidator) and mark.func is _seconds


def is_size(mark: object) -> bool:
    """Tell whether this is what makes a field a size."""
    return isinstance(mark, BeforeValidator) and mark.func is _bytes


def _base_url(value: str) -> str:
    parts = urlsplit(value)

    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("write the plain address, without user, password, query or fragment")

    if not parts.hostname or parts.port == 0 or parts.scheme not in {"https", "http"}:
        raise ValueError('write an address such as "https://api.openai.com/v1"')

    return value.rstrip("/")


def _webhook(value: str) -> str:
    parts = urlsplit(value)

    if parts.username or parts.password or parts.fragment:
        raise ValueError("write the plain address, without user, password or fragment")

    if not parts.hostname or parts.port == 0 or parts.scheme not in {"https", "http"}:
        raise ValueError('write an address such as "https://hooks.example.com/spool"')

    return value


def is_readable_on_the_way(base_url: str) -> bool:
    """Tell whether what is sent to an address can be read between here and there."""
    parts = urlsplit(base_url)

    return parts.scheme == "http" and not is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(value: object) -> object:
    """Return HOST:PORT; a port alone is one of this machine."""
    text = str(value).strip() if isinstance(value, int | str) else ""
    host, _, port = text.rpartition(":")

    if not port.isdecimal() or int(port) > MAX_PORT or isinstance(value, bool):
        raise ValueError('write HOST:PORT, as in "127.0.0.1:9464" or "[::1]:9464", or a port')

    return f"{host or '127.0.0.1'}:{int(port)}"


def _template(source: str) -> str:
    try:
        Sandbox().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno} of the template: {error.message}") from error
    except (SyntaxError, RecursionError, MemoryError, OverflowError) as error:
        raise ValueError(f"the template cannot be compiled: {error}") from error

    return source


def _env_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("write the name of an environment variable, not the key itself")

    return value


def _encoding(value: str) -> str:
    try:
        b"a".decode(value, "ignore")  # which refuses codecs that make no text, like base64
        return codecs.lookup(value).name
    except LookupError:
        raise ValueError('write an encoding such as "utf-8", "cp1252" or "utf-16"') from None


def _path(value: Path) -> Path:
    if "\0" in str(value):
        raise ValueError("no path holds a NUL character")

    try:
        value.expanduser()
    except RuntimeError:
        raise ValueError("nobody on this machine has that name; write the whole path") from None

    return value


def _day(value: str) -> str:
    try:
        return date.fromisoformat(value).isoformat()
    except ValueError:
        raise ValueError('write a day such as "2026-11-20"') from None


Duration = Annotated[float, BeforeValidator(_seconds), Field(ge=0)]
"""Seconds; written as "200ms", "10s", "2m", "24h", "7d" or a bare number of seconds."""

Size = Annotated[int, BeforeValidator(_bytes), Field(gt=0)]
"""Bytes; written as "64KB", "190MB", "1GB" (decimal) or a bare number of bytes."""

PositiveDuration = Annotated[Duration, Field(gt=0)]
Encoding = Annotated[str, AfterValidator(_encoding)]
Template = Annotated[str, AfterValidator(_template)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
Factor = Annotated[float, Field(ge=1, allow_inf_nan=False)]
Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Webhook = Annotated[str, AfterValidator(_webhook)]
FilePath = Annotated[Path, AfterValidator(_path)]
Day = Annotated[str, AfterValidator(_day)]
Listen = Annotated[str, BeforeValidator(_listen)]
Window = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}[hd]$")]
LaneWidth = Annotated[int, Field(ge=1, le=64)]
ProviderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
# A profile is also a folder of the inbox, where hidden names are ignored.
ProfileName = Annotated[str, Field(pattern=r"^[^./\x00-\x20][^/\x00-\x1f]{0,63}$")]
EnvName = Annotated[str, AfterValidator(_env_name)]
