"""The options of sampling, for `LanguageModel` and for ``sample.py``, which shows its help without loading PyTorch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from charlm.options import Count, NonNegative, Options


class SamplingOptions(Options):
    """How text is written."""

    length: Count = 500
    """Characters to write."""
    temperature: NonNegative = 0.8
    """Values below 1 give safer text, above 1 wilder text; 0 is greedy."""
    greedy: bool = False
    """Always choose the most likely character."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed that makes the text reproducible; without one, the text differs each time."""
    unknown: Literal["error", "skip"] = "error"
    """What to do with characters of the prompt that the model never saw."""
