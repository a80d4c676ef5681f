"""A trained model as its user sees it: text in, text or numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from charlm.checkpoint.loading import load_checkpoint
from charlm.checkpoint.paths import StrPath, find_checkpoint
from charlm.errors import UsageError
from charlm.inference import scoring
from charlm.inference.html import Score, Surprise, card, printable
from charlm.inference.sampling_options import Unknown
from charlm.inference.text_searcher import TextSearcher
from charlm.models.network import Network
from charlm.models.windowed import Windowed
from charlm.options import PositiveInt, checked
from charlm.text.vocab import Vocab


def load(path: StrPath | None = None, trust: Iterable[str] = ()) -> LanguageModel:
    """Open a checkpoint file or run folder (default: the newest run below the current folder).

    `trust` names packages of your own that the checkpoint may take its network from.
    """
    opened = load_checkpoint(find_checkpoint(path), trust)
    return LanguageModel(
        opened.network, opened.vocab, opened.normalisation, opened.config, opened.corpus, opened.progress
    )


class Prediction(NamedTuple):
    """A character of the text, the most likely character after it, and the probability of the latter."""

    read: str
    next: str
    probability: float


class LanguageModel(TextSearcher):
    """A network with the vocabulary and text normalisation that it was trained with.

    `progress` has the ``epoch`` of the weights and their ``val_nats`` or ``train_nats``, as far as they are known.
    """

    def __init__(
        self,
        network: Network,
        vocab: Vocab,
        normalisation: dict[str, Any],
        config: dict[str, Any] | None = None,
        corpus: dict[str, Any] | None = None,
        progress: dict[str, float] | None = None,
    ) -> None:
        super().__init__(network, vocab, normalisation)
        self.config, self.corpus, self.progress = config or {}, corpus or {}, progress or {}

    def describe(self) -> dict[str, str]:
        """What the model is: family, parameters, corpus, vocabulary and loss, each as text."""
        wrapped = isinstance(self.network, Windowed)
        family = self.network.network if wrapped else self.network
        window = f" after a window of {self.network.window} characters" if wrapped else ""
        parameters = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        lowercase = ", lower case" if self.normalisation.get("lowercase") else ""
        facts = {"model": f"{type(family).__name__}{window}, {parameters:,} parameters"}
        if "name" in self.corpus:
            facts["corpus"] = printable(self.corpus["name"])
        facts["vocabulary"] = f"{len(self.vocab)} symbols{lowercase}"
        for name, kind in (("val_nats", "validation"), ("train_nats", "training")):
            if name in self.progress:
                nats, epoch = self.progress[name], self.progress.get("epoch", "?")
                facts[f"{kind} loss"] = f"{nats:.4f} nats/char, {nats / math.log(2):.3f} bpc, epoch {epoch}"
        return facts

    def __repr__(self) -> str:
        return f"<LanguageModel: {'; '.join(f'{name} {value}' for name, value in self.describe().items())}>"

    def _repr_html_(self) -> str:
        return card("LanguageModel", self.describe())

    @torch.inference_mode()
    def predictions(self, text: str, unknown: Unknown = "error") -> list[Prediction]:
        """The most likely next character after each character of `text`, read from the initial state.

        Special symbols are never predicted. Raises UsageError for unknown characters, or skips them.
        """
        ids = self._prompt(text, unknown).to(next(self.network.parameters()).device)
        if len(ids) == 0:
            return []
        logits = self.network.at_every_step(ids.unsqueeze(0)).logits
        best = logits[0, :, self.vocab.offset :].argmax(-1, keepdim=True) + self.vocab.offset
        probabilities = logits[0].double().softmax(-1).gather(-1, best)[:, 0]
        read, predicted = self.vocab.decode(ids.tolist()), self.vocab.decode(best[:, 0].tolist())
        return [Prediction(*row) for row in zip(read, predicted, probabilities.tolist(), strict=True)]

    def get_nexts(self, text: str, unknown: Unknown = "error") -> list[str]:
        """The lesson's `get_nexts`: the most likely next character after each character of `text`."""
        return [prediction.next for prediction in self.predictions(text, unknown)]

    @checked
    def score(self, text: str, chunk: PositiveInt = 4096) -> float:
        """Mean nats per character of `text` after its first character, read from the initial state.

        Unknown characters count as <unk> if the model has that symbol. Raises UsageError for them if it has not, and
        for a text of fewer than two characters.
        """
        return scoring.score(self.network, self._scored(text), chunk)

    @checked
    def score_each(self, text: str, chunk: PositiveInt = 4096) -> list[Score]:
        """Each character of `text` after the first, with its nats; their mean is `score`, which raises the same errors.

        The characters are those of the text as the model reads it, normalised.
        """
        return list(self.show(text, chunk).scores)

    @checked
    def show(self, text: str, chunk: PositiveInt = 4096) -> Surprise:
        """`text` for a notebook: the more a character surprises the model, the redder; as `score_each` otherwise.

        The full colour means no better than a guess among all symbols.
        """
        ids = self._scored(text)
        read = self._read(text)
        scores = map(Score, read[1:], scoring.score_each(self.network, ids, chunk))
        return Surprise(read[0], list(scores), math.log(max(len(self.vocab), 2)))

    @checked
    def score_by_position(self, text: str, length: PositiveInt, rows: PositiveInt = 1024) -> list[float]:
        """Mean nats at each position of consecutive windows of `length` characters, each from the initial state.

        Shows how much context helps: later positions are easier. (A model that predicts only after a window was not
        trained on shorter ones.) Raises UsageError like `score`, and for a text that is not longer than one window.
        """
        ids = self._encode(text)
        if len(ids) <= length:
            raise UsageError(f"a text needs more than {length} characters to be scored in windows of {length}")
        return scoring.score_by_position(self.network, ids, length, rows)

    def _scored(self, text: str) -> Tensor:
        """The ids of a text to be scored, int64 (T)."""
        try:
            ids = self._encode(text)
        except UsageError as error:
            raise UsageError(f"{error}: a text with other characters has no score, leave them out") from None
        if len(ids) < 2:
            raise UsageError("a text needs at least two characters to be scored")
        return ids
