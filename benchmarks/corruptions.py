"""Five kinds of corruption to plant in a text, and where each is: the truth for benchmarks/anomalies.py."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from charlm.errors import UsageError

# Written for this benchmark, and without letters that an English vocabulary lacks.
PHRASES = (
    "il pleut sur le toit de la grange",
    "nous irons demain au bord du lac",
    "la porte reste ouverte toute la nuit",
    "je ne sais plus combien de marches",
    "elle a perdu son parapluie au jardin",
    "der Zug kommt heute etwas zu frueh",
    "wir haben das Brot schon gegessen",
    "im Keller steht noch ein altes Fahrrad",
    "niemand wollte den letzten Apfel nehmen",
    "morgen wird das Wetter bestimmt besser",
    "agricola equum nigrum in agro videt",
    "pueri aquam ex flumine portant",
    "magister librum novum discipulis dat",
    "hodie caelum sine nubibus est",
    "naves ad insulam parvam navigant",
)
Edit = tuple[int, int, str]  # a place in the text, its end, and what comes in its stead


@dataclass(frozen=True)
class Corruption:
    """A corruption of a text: what was planted is ``text[start:end]`` of the corrupted one."""

    kind: str
    start: int
    end: int


def swapped_letters(text: str, words: list[re.Match[str]], rng: random.Random, chars: str) -> Edit | None:
    """Two neighbouring letters of a word of at least five, not the first, change places."""
    word = _word(words, rng, 5)
    pairs = [i for i in range(word.start() + 1, word.end() - 1) if text[i] != text[i + 1]] if word else []
    if not pairs:
        return None
    at = rng.choice(pairs)
    return at, at + 2, text[at + 1] + text[at]


def doubled_word(text: str, words: list[re.Match[str]], rng: random.Random, chars: str) -> Edit | None:
    """A word of at least two letters stands there twice."""
    word = _word(words, rng, 2)
    return word and (word.end(), word.end(), f" {word.group()}")


def another_language(text: str, words: list[re.Match[str]], rng: random.Random, chars: str) -> Edit | None:
    """A phrase in French, German or Latin follows a word."""
    word = _word(words, rng, 1)
    return word and (word.end(), word.end(), f" {rng.choice(PHRASES)}")


def wrong_case(text: str, words: list[re.Match[str]], rng: random.Random, chars: str) -> Edit | None:
    """A lower-case letter in a word of at least four, not the first, is a capital."""
    word = _word([word for word in words if word.group()[1:].islower()], rng, 4)
    if word is None:
        return None
    at = rng.randrange(word.start() + 1, word.end())
    return at, at + 1, text[at].upper()


def noise(text: str, words: list[re.Match[str]], rng: random.Random, chars: str) -> Edit | None:
    """4 to 10 characters are replaced by random ones."""
    word = _word(words, rng, 1)
    length = rng.randint(4, 10)
    return word and (word.start(), word.start() + length, "".join(rng.choices(chars, k=length)))


KINDS: dict[str, Callable[[str, list[re.Match[str]], random.Random, str], Edit | None]] = {
    "swapped letters": swapped_letters,
    "doubled word": doubled_word,
    "another language": another_language,
    "wrong case": wrong_case,
    "noise": noise,
}


def plant(text: str, chars: str, each: int = 40, seed: int = 0) -> tuple[str, list[Corruption]]:
    """`text` with `each` corruptions of every kind in random order, and where they are.

    The text is cut into as many equal pieces; each has one corruption in its middle half. Noise is of `chars`. Raises
    UsageError for a text too short for that.
    """
    rng = random.Random(seed)
    kinds = [kind for kind in KINDS for _ in range(each)]
    rng.shuffle(kinds)
    size = len(text) // max(len(kinds), 1)
    corrupted, planted, done = "", [], 0
    for piece, kind in enumerate(kinds):
        first = piece * size + size // 4
        words = list(re.compile(r"[^\W\d_]+").finditer(text, first, first + size // 2))
        edit = None
        for _ in range(100):
            edit = edit or KINDS[kind](text, words, rng, chars)
        if edit is None or edit[2] == text[edit[0] : edit[1]] or edit[1] > (piece + 1) * size:
            raise UsageError(f"a text of {len(text):,} characters is too short to hide {len(kinds)} corruptions in it")
        start, end, new = edit
        corrupted += text[done:start] + new
        planted.append(Corruption(kind, len(corrupted) - len(new), len(corrupted)))
        done = end
    return corrupted + text[done:], planted


def _word(words: list[re.Match[str]], rng: random.Random, least: int) -> re.Match[str] | None:
    long = [word for word in words if len(word.group()) >= least]
    return rng.choice(long) if long else None
