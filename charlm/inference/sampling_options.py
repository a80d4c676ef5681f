"""The options of sampling, for `LanguageModel` and for ``sample.py``, which shows its help without loading PyTorch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from charlm.errors import OptionError
from charlm.inference.constraints.schema import parse_schema
from charlm.inference.decoding import Decoding
from charlm.inference.stopping import StopAt
from charlm.options import Count, Options, PositiveInt

GAP = "___"  # in a text to fill in
Unknown = Literal["error", "skip"]
Schema = Annotated[
    dict[str, Any], BeforeValidator(lambda value: parse_schema(value) if isinstance(value, str) else value)
]
NotEmpty = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[NotEmpty], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class TextOptions(Options):
    """What a text may be, and where it ends."""

    length: Count = 500
    """Characters to write, at most."""
    stop: Texts = []
    """End before this text, which may begin in the prompt. May be given several times."""
    stop_at: StopAt | None = None
    """End with the sentence, or before the next blank line."""
    charset: NotEmpty | None = None
    """Write these characters only."""
    regex: NotEmpty | None = None
    """The whole continuation matches this regular expression."""
    json_schema: Schema | None = None
    """The continuation is JSON of this schema."""
    unknown: Unknown = "error"
    """What to do with characters of the prompt that the model never saw."""

    @model_validator(mode="after")
    def _match_as_a_whole(self) -> TextOptions:
        if self.regex is not None and self.json_schema is not None:
            raise OptionError("regex", "and a JSON schema both say what the text is: leave one of them out")
        for name in ("stop", "stop_at"):
            if getattr(self, name) and (self.regex is not None or self.json_schema is not None):
                raise OptionError(name, "would end a text before it matches as a whole: leave it out, or the pattern")
        return self


class SamplingOptions(Decoding, TextOptions):
    """How texts are drawn."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed that makes the text reproducible; without one, the text differs each time."""


class OutputOptions(Options):
    """How many texts ``sample.py`` writes, and in which form."""

    num_samples: PositiveInt | None = None
    """Texts for each prompt, with seeds that count up; without a number, 1, or 10 endings or fillings."""
    best_of: PositiveInt | None = None
    """Draw this number of texts and write those whose characters are the most probable on average."""
    beams: PositiveInt | None = None
    """Do not draw: write the most probable text that beam search finds, with this number of beams."""
    format: Literal["text", "jsonl"] = "text"
    """Texts as they are, or a line of JSON for each."""
    logprobs: bool = False
    """In JSON, also the log-probability of each character."""
