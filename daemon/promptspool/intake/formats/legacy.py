"""Legacy: which 8-bit encoding the bytes of a text that is not UTF-8 were written in.

Counts each byte above ASCII with its neighbours, reads the counts in every encoding at hand, and
holds them against the letters that languages use. The answer is a plausible codec, and whether it
is certain: no other encoding comes near, or all that do say the same. Memory does not grow with
the text. Pure; raises nothing.
"""

from __future__ import annotations

import codecs
import math
import re
from collections import Counter
from typing import NamedTuple

_WESTERN = (
    "éèàêçôîûùâïëœüÿæ",  # French
    "üäößé",  # German
    "óíáéñúü",  # Spanish
    "ãçáéíóêõúâàôü",  # Portuguese
    "èàùòìéî",  # Italian
    "ëéïöüèçáóíñê",  # Dutch, English
    "äöåéüà",  # Swedish, Finnish
    "øåæéòóöäü",  # Danish, Norwegian
    "óàéíèçòúïü",  # Catalan
    "íáðóéæþöúý",  # Icelandic
    "ëç",  # Albanian
    "äõüöšž",  # Estonian
    "éáóíäöüàèçñåøãêæôâúëîïùûœßõòì",  # several of them in one file
)
_CENTRAL = (
    "łżąęóśćńź",  # Polish
    "íáéěšřčýžůúťňďó",  # Czech
    "áíčéýžšúťľňďóäôĺŕ",  # Slovak
    "áéöóőüíúű",  # Hungarian
    "čšžćđ",  # Slovene, Croatian
    "ăîâşţ",  # Romanian
    "äõüöšž",  # Estonian
    "ëç",  # Albanian
    "áéíóčšžłąęćżúýěřőüöůśńăşţâîťďňľđűź",  # several of them in one file
)
_TURKISH = ("ışğüçöİâîû",)
_BALTIC = ("ėšųžįąčūę", "āīēšņūļģķžč", "äõüöšž")  # Lithuanian, Latvian, Estonian
_CYRILLIC = (
    "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё",  # Russian
    "оаинівтерсклдупмязьбгчйхжцюєїфшщґ",  # Ukrainian
    "аиоетнрсвдлкпмзугяъбчцжщхйшюфь",  # Bulgarian
    "аоиенртсјвкдуплмзгбчшцжћхњљђфџ",  # Serbian
    "анірыоекслдтувпямзцгбьчшжйўхюэфё",  # Belarusian
)
_HEBREW = ("יולהמתראבנשקדפעםחטסזןגכצךףץ",)
_ARABIC = ("الينمرتبوةدعسفكقحجأهشصخطإذغىثضزئءؤظآ",)
_VIETNAMESE = ("đàưáôảạêảăơâíìóòéúùýèã\u0301\u0300\u0323\u0309\u0303",)
_GREEK = ("αοετινσρμηπκςυλίγδέήόάχωθύφώβξζψ",)

# How much rarer than Western Windows each is, as a logarithm, and for whom.
_CODECS = {
    "cp1252": (0.0, _WESTERN),
    "cp1250": (1.0, _CENTRAL),
    "cp1251": (1.0, _CYRILLIC),
    "cp1253": (2.0, _GREEK),
    "cp1254": (2.0, _TURKISH),
    "cp1255": (2.0, _HEBREW),
    "cp1256": (2.0, _ARABIC),
    "cp1257": (2.0, _BALTIC),
    "cp1258": (2.0, _VIETNAMESE),
    "cp850": (3.0, _WESTERN),
    "mac_roman": (3.0, _WESTERN),
    "iso8859_2": (3.0, _CENTRAL),
    "cp852": (4.0, _CENTRAL),
    "mac_latin2": (5.0, _CENTRAL),
    "cp857": (5.0, _TURKISH),
    "koi8_u": (3.0, _CYRILLIC),
    "cp866": (4.0, _CYRILLIC),
    "mac_cyrillic": (4.0, _CYRILLIC),
    "iso8859_7": (4.0, _GREEK),
    "cp737": (5.0, _GREEK),
    "mac_greek": (5.0, _GREEK),
    "mac_turkish": (5.0, _TURKISH),
}

# The others are suggested, never taken: old, rare, and too often wrong in what was measured.
_TAKEN = frozenset({"cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1257"})

# Several bytes a character: suggested by what is written most in each, about this share of it.
_ASIAN = (
    ("cp932", 0.5, re.compile("[\u3041-\u30ff]")),
    ("euc_jp", 0.5, re.compile("[\u3041-\u30ff]")),
    ("cp949", 0.95, re.compile("[\uac00-\ud7a3]")),
    ("gb18030", 0.2, re.compile("[的一是不了在有人我这中大来上个国到说们为时地要用以文件无法中]")),
    ("big5", 0.2, re.compile("[的一是不了在有人我這中大來上個國到說們為時地要用以文件無法中]")),
)
_LEAST_ASIAN = 0.4

# Of a character that is no letter of the language, for one that is: about the share of the text.
_PUNCTUATION, _FOREIGN, _SYMBOL = 1e-2, 1e-4, 1e-5
_ODD = 1e-2
_CAPITAL = 0.1

# Quotes, dashes, points, blanks; of them, what stands between letters of one word or two.
_COMMON = frozenset("\u2018\u2019\u201c\u201d\u201e«»\xa0\u2026\u2013\u2014¿¡°\u2022€·ºª")
_JOINING = frozenset("\u2019·\xa0\xad\u2026\u2013\u2014")

_MARGIN = 10.0
_LEAST_FIT = -5.0
_MOST_EVIDENCE = 300
_MOST_SHAPES = 60_000
_SAMPLE_BYTES = 1 << 16

# Neighbours matter as what they are, not which: a capital, a small letter, a digit, anything else.
_KINDS = b"".join(
    b"A" if char.isupper() else b"a" if char.islower() else b"0" if char.isdigit() else b" "
    for char in map(chr, range(0x80))
) + bytes(range(0x80, 0x100))
_SHAPE = re.compile(rb"(?s)(?=(.[\x80-\xff].))")


class Guess(NamedTuple):
    """What a text was likely written in."""

    codec: str
    is_certain: bool


class Evidence:
    """What is known of a text: its bytes above ASCII, between their neighbours."""

    def __init__(self) -> None:
        """Start without any."""
        self._shapes: Counter[bytes] = Counter()
        self._tail = b" "
        self._sample = bytearray()

    def add(self, block: bytes) -> None:
        """Take the next block of the text."""
        data = self._tail + block.translate(_KINDS)

        # More shapes than any alphabet makes are several bytes a character, or no text at all.
        if len(self._shapes) <= _MOST_SHAPES:
            self._shapes.update(_SHAPE.findall(data))

        if len(self._sample) < _SAMPLE_BYTES and not block.isascii():
            self._sample += block[: _SAMPLE_BYTES - len(self._sample)]

        self._tail = data[-2:]

    def guess(self) -> Guess | None:
        """Return what the text was likely written in; None if nothing fits."""
        shapes = self._shapes + Counter(_SHAPE.findall(self._tail + b" "))

        if len(self._shapes) > _MOST_SHAPES:
            return self._asian()

        evidence = min(sum(shapes.values()), _MOST_EVIDENCE)
        scores: dict[str, float] = {}

        for codec, (rarity, languages) in _CODECS.items():
            read = _read(shapes, codec)
            fit = max(_fit(read, letters) for letters in languages) if read else -math.inf

            if fit > _LEAST_FIT:
                scores[codec] = fit * evidence - rarity

        if not scores:
            return self._asian()

        best = max(scores, key=lambda codec: scores[codec])
        high = bytes({shape[1] for shape in shapes})
        text = high.decode(best)
        rivals = [score for codec, score in scores.items() if _text(high, codec) != text]
        # A few bytes may fit nothing else by chance, so the worst that fits is always a rival.
        margin = scores[best] - max([_LEAST_FIT * evidence, *rivals])

        return Guess(best, best in _TAKEN and margin >= _MARGIN)

    def _asian(self) -> Guess | None:
        """Return the best of the encodings that take several bytes a character, never certain."""
        best, most = None, _LEAST_ASIAN

        for codec, usual, marks in _ASIAN:
            try:
                # The sample may end within a character.
                text = codecs.getincrementaldecoder(codec)().decode(bytes(self._sample))
            except UnicodeDecodeError:
                continue

            written = sum(not char.isascii() for char in text)
            fit = len(marks.findall(text)) / max(written, 1) / usual

            if fit > most:
                best, most = Guess(codec, is_certain=False), fit

        return best


def _text(data: bytes, codec: str) -> str:
    return data.decode(codec, "replace")


def _read(shapes: Counter[bytes], codec: str) -> Counter[tuple[str, float]]:
    """Return the characters that *codec* makes of *shapes*, each with how odd its neighbours are.

    Empty if it makes none of one of them.
    """
    read: Counter[tuple[str, float]] = Counter()

    for shape, count in shapes.items():
        try:
            text = shape.decode(codec)
        except UnicodeDecodeError:
            return Counter()

        read[text[1], _oddness(*text)] += count

    return read


def _oddness(before: str, char: str, after: str) -> float:
    """Return how much rarer *char* is between these neighbours than elsewhere, as a factor."""
    if char in _COMMON or not char.isalpha():
        inside = before.isalpha() and after.isalpha() and char not in _JOINING

        return _ODD if inside else 1.0

    if before.isdigit() or (char.isupper() and before.islower()):
        return _ODD

    # Latin words are mostly ASCII, others not at all.
    if _is_latin(char):
        is_foreign = all(near.isalpha() and not near.isascii() for near in (before, after))
    else:
        is_foreign = any(near.isalpha() and near.isascii() for near in (before, after))

    return _ODD if is_foreign else 1.0


def _is_latin(char: str) -> bool:
    return char < "\u0250"


def _fit(read: Counter[tuple[str, float]], letters: str) -> float:
    """Return how well characters fit a language, as the mean logarithm of their frequencies."""
    # About as frequent as one over the rank.
    norm = sum(1 / rank for rank in range(1, len(letters) + 1))
    weights = {letter: 1 / rank / norm for rank, letter in enumerate(letters, start=1)}
    weights = {letter.upper(): weight * _CAPITAL for letter, weight in weights.items()} | weights
    total = sum(read.values())

    return (
        sum(
            count * math.log(weights.get(char) or _rest(char)) + count * math.log(oddness)
            for (char, oddness), count in read.items()
        )
        / total
    )


def _rest(char: str) -> float:
    if char in _COMMON:
        return _PUNCTUATION

    return _FOREIGN if char.isalpha() else _SYMBOL
