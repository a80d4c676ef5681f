"""A trained model as a person uses it: text in, text or a number out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from charlm import checkpoint
from charlm.errors import UsageError
from charlm.generate import generate
from charlm.models import Network
from charlm.options import whole
from charlm.vocab import Vocab, normalise


def load(path: str | Path | None = None) -> LanguageModel:
    """Open a checkpoint file or run folder (default: the newest run below the current folder)."""
    opened = checkpoint.read(checkpoint.find(path))
    return LanguageModel(opened.network, opened.vocab, opened.normalisation, opened.config, opened.corpus)


class LanguageModel:
    """A network with the vocabulary and text normalisation it was trained with."""

    def __init__(
        self,
        network: Network,
        vocab: Vocab,
        normalisation: dict[str, Any],
        config: dict[str, Any] | None = None,
        corpus: dict[str, Any] | None = None,
    ) -> None:
        self.network, self.vocab, self.normalisation = network, vocab, normalisation
        self.config, self.corpus = config or {}, corpus or {}

    def stream(
        self,
        prompt: str = "",
        length: int = 500,
        *,
        temperature: float = 0.8,
        greedy: bool = False,
        seed: int | None = None,
        unknown: Literal["error", "skip"] = "error",
    ) -> Iterator[str]:
        """Yield `length` characters that continue `prompt`, each as soon as it is made.

        An empty prompt starts after a line break. `seed` None draws differently each time. `unknown`
        says what becomes of prompt characters the model never saw. Raises UsageError for those, and for
        a negative length or temperature, before the first character.
        """
        if seed is not None:
            whole("seed", seed, 0, 2**63 - 1)
        try:
            ids = self.vocab.encode(normalise(prompt, **self.normalisation), unknown)
        except UsageError as error:
            raise UsageError(f"the model never saw some characters of the prompt; {error}") from None
        if len(ids) == 0:
            starter = next((c for c in "\n " if c in self.vocab.chars), self.vocab.chars[0])
            ids = self.vocab.encode(starter)
        rng = torch.Generator()
        rng.seed() if seed is None else rng.manual_seed(seed)
        made = generate(
            self.network,
            torch.from_numpy(ids).long(),
            length,
            temperature=0.0 if greedy else temperature,
            rng=rng,
            first_id=self.vocab.offset,
        )
        return (self.vocab.decode([i]) for i in made)

    def generate(self, prompt: str = "", length: int = 500, **options: Any) -> str:
        """The `length` characters that continue `prompt`, as one string; options as in `stream`."""
        return "".join(self.stream(prompt, length, **options))

    @torch.inference_mode()
    def score(self, text: str, chunk: int = 4096) -> float:
        """Mean nats per character of `text` after its first, read from a zero state.

        Characters outside the vocabulary count as <unk> where the model has that symbol and raise
        UsageError where it has not, as does a text of fewer than two characters.
        """
        ids = torch.from_numpy(self.vocab.encode(normalise(text, **self.normalisation))).long()
        if len(ids) < 2:
            raise UsageError("a text needs at least two characters to be scored")
        device = next(self.network.parameters()).device
        x, y, state, total = ids[:-1].to(device), ids[1:].to(device), None, 0.0
        for x_T, y_T in zip(x.split(chunk), y.split(chunk), strict=True):
            logits, state = self.network.every_step(x_T.unsqueeze(0), state)
            total += F.cross_entropy(logits[0].double(), y_T, reduction="sum").item()
        return total / len(y)
