"""A corpus as ids, with the vocabulary to read them back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charlm.errors import UsageError
from charlm.text.corpus import Corpus, Files
from charlm.text.vocab import Newlines, Unicode, Vocab, normalise

Ids = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class EncodedText:
    """The ids of a corpus and of the `extra` texts of a mix, one a character, and what is known about the corpus.

    `normalisation` has the arguments of `normalise`.
    """

    ids: Ids
    extra: tuple[Ids, ...]
    vocab: Vocab
    normalisation: dict[str, Any]
    source: str
    sha256: str
    notices: tuple[str, ...]
    files: Files | None = None


def encode(
    corpus: Corpus,
    *,
    lowercase: bool = False,
    newlines: Newlines = "keep",
    unicode: Unicode = "keep",
    min_freq: int = 1,
    pad: bool = False,
    unk: bool = False,
    vocab_part: Callable[[int], int] | None = None,
) -> EncodedText:
    """Normalise a corpus, build its vocabulary (see `Vocab.build`) and encode it.

    `vocab_part` gives, for the length of the main text, how many of its first characters the vocabulary is built from
    (None: all); extra texts always count in full. Raises UsageError for characters outside a vocabulary without `unk`.
    """
    normalisation: dict[str, Any] = {"lowercase": lowercase, "newlines": newlines, "unicode": unicode}
    text, *extra = [normalise(part.text, **normalisation) for part in (corpus, *corpus.extra)]
    part = text if vocab_part is None else text[: vocab_part(len(text))]
    vocab = Vocab.build("".join([part, *extra]), min_freq=min_freq, pad=pad, unk=unk)
    # All of it stays in memory, perhaps the GPU's. Signed, because padded targets are negative.
    dtype: type[np.signedinteger[Any]] = np.int16 if len(vocab) < 2**15 else np.int32
    try:
        ids, *others = [vocab.encode(part).astype(dtype, copy=False) for part in (text, *extra)]
    except UsageError as error:
        raise UsageError(f"{error}: use data.unk=true, or data.vocab_from=all with data.min_freq=1") from None
    source = corpus.source, corpus.sha256, corpus.notices, corpus.files
    return EncodedText(ids, tuple(others), vocab, normalisation, *source)
