"""Characters as a person sees them. Imports nothing heavy, because every start of ``sample.py`` needs it."""

from __future__ import annotations

SYMBOLS = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥"}


def visible(text: str) -> str:
    """`text` on one line, with symbols for white space and · for what cannot be shown."""
    return "".join(SYMBOLS.get(c, c if c.isprintable() else "·") for c in text)
