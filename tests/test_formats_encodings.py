from __future__ import annotations

import codecs
import re
import tracemalloc
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promptspool.errors import BadInput
from promptspool.intake.formats.encodings import decoding_fault, text_encoding, writing_of
from promptspool.intake.rows import ReadOptions

if TYPE_CHECKING:
    from pathlib import Path

# A few lines as people write them, with the letters that encodings disagree about.
FRENCH = (
    "Résumez ce texte : « L'été où j'étais à Évian, ça n'a pas été très gai. »\nDéjà à côté ?\n"
)
GERMAN = "Fasse zusammen: Über den Äckern fließt größere Kälte, möglichst früh für Müller.\n"
SPANISH = "¿Qué opinó el señor Núñez? Tradúcelo al inglés, también la última línea.\n"
PORTUGUESE = "Não é possível traduzir a descrição da situação: três lições são avançadas.\n"
DANISH = "Hvad spiste søsteren på færgen? Rødgrød med fløde, også æbler og blåbær.\n"
POLISH = "Proszę przetłumaczyć zdanie: Żółta łódź płynęła wzdłuż brzegu, gdy był świt.\n"
CZECH = "Přelož větu: Příliš žluťoučký kůň úpěl ďábelské ódy, řekl hrdě stařík.\n"
TURKISH = "Şu cümleyi çevir: Ağaçların altında kırmızı ışıklar yanıyordu, gülümsedi.\n"  # noqa: RUF001
RUSSIAN = "Переведи предложение: завтра утром мы поедем на дачу к бабушке.\n"
GREEK = "Μετάφρασε την πρόταση: αύριο το πρωί θα πάμε στο σπίτι της γιαγιάς.\n"
JAPANESE = "次の文を英語に訳してください。明日の朝は雨が降るでしょう。\n"
CHINESE = "请把这个句子翻译成英文: 我们明天早上要去北京的大学, 你在不在?\n"
KOREAN = "다음 문장을 영어로 번역해 주세요. 내일 아침에는 비가 오겠습니다.\n"

# Halves of surrogate pairs; elsewhere, a byte that none of them has after 0x81 is enough.
_NO_TEXT = {"utf-16": b"\x00\xdc", "utf-16-be": b"\xdc\x00"}


@dataclass
class Dropped:
    """A file as it was dropped; unwrapping gives it out in small pieces."""

    name: str
    file: Path
    notes: dict[str, str] = field(default_factory=dict)

    def open(self) -> IO[bytes]:
        """Open it at its beginning."""
        return self.file.open("rb", buffering=0)

    def path(self) -> Path:
        """Return where it is."""
        return self.file


def dropped(folder: Path, data: bytes) -> Dropped:
    """Drop a file that holds *data*."""
    path = folder / "text.txt"
    path.write_bytes(data)

    return Dropped(path.name, path)


def options(encoding: str | None = None) -> ReadOptions:
    """Return what a profile says."""
    return ReadOptions(max_row_bytes=1_000_000, encoding=encoding)


def refusal(source: Dropped, encoding: str | None = None) -> BadInput:
    """Return why the encoding of a file is not known."""
    with pytest.raises(BadInput) as caught:
        text_encoding(source, options(encoding))

    return caught.value


@pytest.mark.parametrize(
    ("mark", "written_as", "read_as"),
    [
        (codecs.BOM_UTF8, "utf-8", "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16-le", "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16-be", "utf-16"),
        (codecs.BOM_UTF32_LE, "utf-32-le", "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32-be", "utf-32"),
    ],
)
@pytest.mark.parametrize("was_set", [None, "utf-8", "cp1252", "utf-16"])
def test_a_byte_order_mark_decides(
    tmp_path: Path, mark: bytes, written_as: str, read_as: str, was_set: str | None
) -> None:
    """A mark holds against what is set, is taken off in decoding, and can be written again."""
    source = dropped(tmp_path, mark + "id\nж😀".encode(written_as))
    found = text_encoding(source, options(was_set))

    assert found == read_as
    assert source.file.read_bytes().decode(found) == "id\nж😀"
    assert writing_of(source, found) == (written_as, mark)
    assert source.notes == ({} if read_as == "utf-8-sig" else {"encoding": read_as})


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["id", "id,prompt\n1,一😀\n", "id\n" + "Ω 漢字 " * 1_000])
def test_utf16_is_known_by_its_zeros(tmp_path: Path, encoding: str, text: str) -> None:
    """Without a mark, UTF-16 is told by the zeros of its first characters."""
    source = dropped(tmp_path, text.encode(encoding))

    assert text_encoding(source, options()) == encoding
    assert source.notes == {"encoding": encoding}
    assert writing_of(source, encoding) == (encoding, b"")
    assert text_encoding(source, options("UTF16")) == encoding


@pytest.mark.parametrize("data", [b"", b"a", b"a\0b\0c\nd\0", b"ab\0c\0d\0", b"\0\0\0\0", b"\0a\n"])
def test_a_few_zeros_are_no_utf16(tmp_path: Path, data: bytes) -> None:
    """Zero bytes in other places are left to whoever reads the rows."""
    found = text_encoding(dropped(tmp_path, data), options())

    assert found == ("utf-16-le" if data.startswith(b"a\0b\0") else "utf-8")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text().filter(lambda text: "\0" not in text), st.integers(0, 70_000))
def test_all_that_is_utf8_is_taken_as_it(tmp_path: Path, text: str, before: int) -> None:
    """Valid UTF-8 is never guessed at, wherever its characters meet the blocks it is read in."""
    source = dropped(tmp_path, b"x" * before + text.removeprefix("\ufeff").encode())

    assert text_encoding(source, options()) == ("utf-8")
    assert source.notes == {}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bad", [b"\xe9", b"\xc3", b"\xed\xa0\x80", b"\xf5", b"\x80"])
def test_the_first_wrong_byte_is_named(tmp_path: Path, end: str, bad: bytes) -> None:
    """A wrong byte in the last line counts, and is told by line, value and offset."""
    data = f"é line{end}".encode() * 20_000 + b"caf" + bad
    error = refusal(dropped(tmp_path, data))
    where = f"line 20001 has the byte 0x{bad[0]:02x} at offset {len(data) - len(bad)}"

    assert where in str(error)
    assert str(error).startswith("the file is not UTF-8")
    assert "; save it as UTF-8, or write encoding = " in str(error)
    assert (error.code, error.line) == ("wrong_encoding", 20_001)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (FRENCH, "cp1252"),
        (GERMAN, "cp1252"),
        (SPANISH, "cp1252"),
        (PORTUGUESE, "cp1252"),
        (DANISH, "cp1252"),
        (FRENCH + GERMAN + SPANISH + PORTUGUESE, "cp1252"),
        (POLISH, "cp1250"),
        (CZECH, "cp1250"),
        (TURKISH, "cp1254"),
        (RUSSIAN, "cp1251"),
        (GREEK, "cp1253"),
    ],
)
@pytest.mark.parametrize("times", [3, 3_000])
def test_what_leaves_no_doubt_is_taken(
    tmp_path: Path, text: str, encoding: str, times: int
) -> None:
    """A few lines of what Windows writes are known by their letters, and it is told."""
    source = dropped(tmp_path, b"id,prompt\r\n" + (text * times).encode(encoding))

    found = text_encoding(source, options())

    assert source.file.read_bytes().decode(found) == "id,prompt\r\n" + text * times
    assert source.notes == {"encoding": found}


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (FRENCH * 3, "mac_roman"),
        (GERMAN * 3, "cp850"),
        (POLISH * 3, "iso8859_2"),
        (RUSSIAN * 3, "koi8_u"),
        (JAPANESE, "cp932"),
        (JAPANESE, "euc_jp"),
        (CHINESE, "gb18030"),
        (KOREAN, "cp949"),
    ],
)
def test_what_is_rare_is_suggested_only(tmp_path: Path, text: str, encoding: str) -> None:
    """Where guesses are wrong too often, the file is refused with the likely encoding."""
    error = refusal(dropped(tmp_path, text.encode(encoding)))

    assert f"(it looks like {encoding})" in str(error)
    assert f'write encoding = "{encoding}" in the profile or in NAME.toml' in str(error)


@pytest.mark.parametrize(
    "data",
    [
        b"caf\xe9 or th\xe9",
        "à la carte".encode("cp1252"),
        "il était là".encode("cp1252"),
        bytes(range(1, 256)),
        bytes(range(0x80, 0x100)) * 1_000,
        "ÐÝÞ ðýþ".encode("cp1252"),
    ],
)
def test_doubt_refuses(tmp_path: Path, data: bytes) -> None:
    """A letter or two are no evidence, and neither is what is no text."""
    assert refusal(dropped(tmp_path, data)).code == "wrong_encoding"


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=2_000))
def test_any_bytes_have_an_encoding_or_a_reason(tmp_path: Path, data: bytes) -> None:
    """Whatever the bytes, the answer is a codec that Python has, or a refusal."""
    try:
        found = text_encoding(dropped(tmp_path, data), options())
    except BadInput:
        return

    assert codecs.lookup(found)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(alphabet="ab\r\néü漢", max_size=60),
    st.sampled_from(["utf-8", "utf-16", "cp932", "gb18030", "utf-16-be"]),
)
def test_a_misfit_is_where_strict_decoding_stops(tmp_path: Path, text: str, encoding: str) -> None:
    """The line and offset of a wrong byte are those of Python's own decoder over the whole."""
    data = text.encode(encoding, "ignore") + _NO_TEXT.get(encoding, b"\x81\xff")
    error = decoding_fault(dropped(tmp_path, data), encoding)

    with pytest.raises(UnicodeDecodeError) as expected:
        data.decode(encoding)

    start = expected.value.start
    line = 1 + len(re.findall("\r\n|\r|\n", data[:start].decode(encoding)))
    assert f"at offset {start};" in str(error)
    assert error.line == line


@pytest.mark.parametrize(
    "name",
    [
        *["rot13", "base64", "zlib", "idna", "punycode", "utf-7", "unicode_escape", "undefined"],
        *["no-such", "", "a\0b", "é" * 300],
    ],
)
def test_what_is_set_must_be_an_encoding_of_text(tmp_path: Path, name: str) -> None:
    """A codec that no file of text is in, or that nobody knows, is the profile's fault."""
    error = refusal(dropped(tmp_path, b"a"), name)

    assert (error.code, error.key) == ("bad_profile", "encoding")
    assert str(error).endswith('is no encoding of text; write for instance encoding = "cp1252"')


@pytest.mark.parametrize(
    ("name", "codec"),
    [("UTF-8", "utf-8"), ("UTF_8_SIG", "utf-8"), (" Windows-1252 ", "cp1252"), ("GBK", "gbk")],
)
def test_what_is_set_is_taken(tmp_path: Path, name: str, codec: str) -> None:
    """An encoding has many names; without a mark nothing is taken off."""
    source = dropped(tmp_path, b"caf\xe9")

    assert text_encoding(source, options(name)) == codec
    assert source.notes == ({} if codec == "utf-8" else {"encoding": codec})


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Twenty megabytes of a legacy encoding are weighed in the memory of a few blocks."""
    source = dropped(tmp_path, (GERMAN * 250_000).encode("cp1252"))
    tracemalloc.start()
    found = text_encoding(source, options())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert found == "cp1252"
    assert peak < 8_000_000
