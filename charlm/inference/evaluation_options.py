"""The options of an evaluation, for ``charlm.evaluate`` and ``evaluate.py``, which shows its help without PyTorch."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, model_validator

from charlm.errors import OptionError
from charlm.options import Options, Positive, PositiveInt, Probability, Text


def _fit_or_number(value: object) -> object:
    if value != "fit" and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
        raise OptionError("", "must be a number above 0, or fit", value)
    return value


class EvaluationOptions(Options):
    """What is evaluated, and how."""

    split: Literal["train", "val", "test"] = "val"
    """The split of the model's own text that is evaluated."""
    text: Text | None = None
    """A file, folder or glob to evaluate instead of a split."""
    encoding: Text = "auto"
    """Its encoding; auto finds that of each file."""
    protocol: Text = "stream"
    """What a prediction may look back on: stream, streams:64, windows:256 (any numbers), or nanogpt."""
    dynamic: Literal["sgd", "rms"] | None = None
    """Dynamic evaluation: the model goes on learning from the text that it has read, by SGD or with RMS-norm."""
    dynamic_rate: Positive | None = None
    """Its learning rate; without one, the rate that suits the end of the training text."""
    dynamic_prior: Probability = 0.0
    """The part of the way back to the trained weights that it goes at each step."""
    dynamic_segment: PositiveInt = 20
    """Characters between two learning steps of dynamic evaluation."""
    cache: bool = False
    """Mix in a neural cache of the last 2,000 characters, with settings that suit the end of the training text."""
    temperature: Annotated[float | Literal["fit"], BeforeValidator(_fit_or_number)] = 1.0
    """Divide the logits by this number, or by the one that suits another split (fit)."""

    @model_validator(mode="after")
    def _fit_together(self) -> EvaluationOptions:
        if self.text is not None and self.split != "val":
            raise OptionError("split", "does not go with text: evaluate one or the other")
        for name in ("dynamic_rate", "dynamic_prior"):
            if getattr(self, name) and self.dynamic is None:
                raise OptionError(name, "needs dynamic (sgd or rms), too")
        windows = self.protocol.startswith("windows") or self.protocol == "nanogpt"
        if self.dynamic is not None and windows:
            raise OptionError("dynamic", "learns along a text: use the protocol stream or streams:64")
        if self.cache and re.fullmatch("streams:[0-9]{3,}", self.protocol):
            raise OptionError("cache", "takes too much memory for so many streams: use fewer than 100")
        return self
