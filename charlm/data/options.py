"""The options of ``data``: which text, and how it is encoded, split and batched."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from charlm.errors import OptionError
from charlm.options import Count, Options, PositiveInt, Text
from charlm.text.vocab import Newlines, Unicode


def _fraction_or_count(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionError("", "must be a fraction such as 0.1, or a count such as 100000", value)
    if not (0 <= value < 1 if isinstance(value, float) else value >= 0):
        raise OptionError("", "must be a fraction from 0 to below 1, or a count of at least 0", value)
    return value


def _one_path(value: object) -> object:
    if isinstance(value, list) and value and all(isinstance(part, str | int | float) for part in value):
        problem = (
            "is a list: give a folder or a quoted glob to read several files as one text, or data=mix "
            f"'data.paths=[{','.join(map(str, value))}]' to mix several texts"
        )
        raise OptionError("", problem, value)
    return value


Size = PositiveInt | Literal["auto"]
Share = Annotated[int | float, BeforeValidator(_fraction_or_count)]


class DataOptions(Options):
    """What every ``data/*.yaml`` may set."""

    name: Text
    """Name of the corpus in the run folder's name and in reports."""
    corpus: dict[str, Any]
    """The function that reads the corpus: its ``_target_``, in charlm.text.sources or your own, and its arguments."""
    path: Annotated[Text, BeforeValidator(_one_path)] = ""
    """data=text: a file, a folder, or a quoted glob such as 'notes/**/*.md'."""
    paths: list[Text] = []
    """data=mix: two or more files, folders or globs; an epoch is one pass over the first, and only it is validated."""
    encoding: Text = "utf-8"
    """Encoding of the files; auto finds that of each file."""
    lowercase: bool = False
    """Convert the text to lower case."""
    newlines: Newlines = "keep"
    """Line ends: as they are, or all of them LF (unix)."""
    unicode: Unicode = "keep"
    """Characters: as they are, or composed (NFC), which makes one é of e and an accent."""
    vocab_from: Literal["all", "train"] = "all"
    """Build the vocabulary from all of the text, or from the training split only."""
    min_freq: PositiveInt = 1
    """Leave characters that occur fewer times out of the vocabulary; needs unk=true."""
    pad: bool = False
    """Reserve id 0 for a padding symbol."""
    unk: bool = False
    """Add a symbol for characters outside the vocabulary."""
    train: Share | None = None
    """Training split: a fraction, or a number of characters (of windows with split=random); null: all that is left."""
    val: Share = 0.1
    """Validation split, after the training split: a fraction or a number as for train."""
    test: Share = 0.0
    """Test split, after the validation split: a fraction or a number as for train."""
    mode: Literal["streams", "windows"] = "streams"
    """Contiguous streams with the state carried from batch to batch, or independent windows."""
    batch_size: Size = 64
    """Rows per batch; auto chooses it by the size of the text (charlm/data/sizes.py)."""
    bptt: Size = 64
    """Characters per row of a batch: the length of truncated BPTT in streams, and of a window; or auto."""
    bptt_jitter: Count = 0
    """Streams: the most characters by which each boundary between training batches moves, at random in every epoch."""
    stride: PositiveInt = 1
    """Windows: characters from the start of one window to the start of the next."""
    shuffle: bool = True
    """Windows: shuffle the training windows in every epoch, or keep the order of the text."""
    split: Literal["contiguous", "random"] = "contiguous"
    """Split the text into contiguous parts, or its windows at random (leaky where windows overlap)."""
    ratio: list[PositiveInt] | None = None
    """data=mix: rows of each text in a training batch, in proportion; batch_size must be a multiple of the sum."""

    @model_validator(mode="after")
    def _fit_together(self) -> DataOptions:
        if self.bptt != "auto" and 2 * self.bptt_jitter >= self.bptt:
            raise OptionError("bptt_jitter", f"must be less than half of data.bptt={self.bptt}", self.bptt_jitter)
        if self.bptt_jitter and self.mode == "windows":
            raise OptionError("bptt_jitter", "needs data.mode=streams: all windows have the same length")
        if self.split == "random" and self.mode == "streams":
            raise OptionError(
                "split", "needs data.mode=windows, as in data=text_windows: streams are contiguous", self.split
            )
        if self.split == "random" and self.vocab_from == "train":
            raise OptionError("split", "needs data.vocab_from=all: training windows overlap the others", self.split)
        if self.ratio and (self.bptt_jitter or self.mode == "windows"):
            raise OptionError("ratio", "needs data.mode=streams and data.bptt_jitter=0", self.ratio)
        if self.ratio and self.batch_size != "auto" and self.batch_size % sum(self.ratio):
            problem = f"must be a multiple of {sum(self.ratio)}, the sum of data.ratio={self.ratio}"
            raise OptionError("batch_size", problem, self.batch_size)
        return self
