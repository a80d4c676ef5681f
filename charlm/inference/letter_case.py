"""What lower-casing loses, coded beside the text: which letters were capitals."""

from __future__ import annotations

from charlm.inference.entropy_coder import Coder
from charlm.inference.unknown import Flags


class LetterCase:
    """The capitals of the lower-case letters in `chars`, as far as lower-casing can be undone.

    With `lowercase` false there are none.
    """

    def __init__(self, chars: str, lowercase: bool) -> None:
        pairs = {c: c.upper() for c in chars} if lowercase else {}
        self._capitals = {
            small: large
            for small, large in pairs.items()
            if len(large) == 1 and large != small and large.lower() == small and large not in pairs
        }
        self._fold = {ord(large): ord(small) for small, large in self._capitals.items()}

    def fold(self, text: str) -> str:
        """`text` without these capitals, of the same length."""
        return text.translate(self._fold) if self._fold else text

    def code(self, coder: Coder, folded: str, text: str | None) -> str:
        """Code which letters of `folded` are capitals in `text`, and return `text`.

        A decision's context is the classes of the two characters before it (known with their case), whether another
        letter follows, and the letter itself if it stands alone: capitals begin sentences and names, follow capitals,
        and "I" is one.
        """
        if not self._capitals:
            return folded
        flags, found = Flags(), list(folded)
        earlier = last = "start"
        letters = [char.isalpha() for char in folded] + [False]
        for i, small in enumerate(folded):
            capital = self._capitals.get(small)
            if capital is None:
                kind = _kind(small)
            else:
                alone = not letters[i + 1] and last not in ("capital", "small")
                context = (earlier, last, letters[i + 1], small if alone else "")
                is_capital = coder.decide(flags.probability(1, context), None if text is None else text[i] != small)
                flags.add(is_capital, context)
                kind = "capital" if is_capital else "small"
                if is_capital:
                    found[i] = capital
            earlier, last = last, kind
        return "".join(found)


def _kind(char: str) -> str:
    if char in ".!?":
        return "end of a sentence"
    if char in "\r\n":
        return "start"
    if char.isspace():
        return "space"
    return "small" if char.isalpha() else "other"
