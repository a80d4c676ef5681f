"""A trained model as a person uses it: text in, text or a number out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from charlm.checkpoint.loading import load_checkpoint
from charlm.checkpoint.paths import find_checkpoint
from charlm.checks import check_choice, check_int
from charlm.errors import UsageError
from charlm.inference.decoding import generate
from charlm.models.network import Network
from charlm.models.state import State
from charlm.text.vocab import Vocab, normalise


def load(path: str | Path | None = None, trust: Iterable[str] = ()) -> LanguageModel:
    """Open a checkpoint file or run folder (default: the newest run below the current folder).

    `trust` names packages of the user's own that the file may take its network from.
    """
    opened = load_checkpoint(find_checkpoint(path), trust)
    return LanguageModel(opened.network, opened.vocab, opened.normalisation, opened.config, opened.corpus)


class Prediction(NamedTuple):
    """A character that was read, the likeliest one after it, and that one's probability."""

    read: str
    next: str
    probability: float


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
            check_int("seed", seed, 0, 2**63 - 1)
        ids = self._prompt(prompt, unknown)
        if len(ids) == 0:
            starter = next((c for c in "\n " if c in self.vocab.chars), self.vocab.chars[0])
            ids = self._prompt(starter)
        rng = torch.Generator()
        rng.seed() if seed is None else rng.manual_seed(seed)
        made = generate(
            self.network,
            ids,
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
    def predictions(self, text: str, unknown: Literal["error", "skip"] = "error") -> list[Prediction]:
        """The most likely next character after each character of `text`, read from a zero state.

        The lesson's `get_nexts`; the last of them is its `get_next`. Special symbols are never predicted.
        Raises UsageError for characters the model never saw (or skips them).
        """
        ids = self._prompt(text, unknown).to(next(self.network.parameters()).device)
        if len(ids) == 0:
            return []
        logits = self.network.at_every_step(ids.unsqueeze(0)).logits
        best = logits[0, :, self.vocab.offset :].argmax(-1, keepdim=True) + self.vocab.offset
        probabilities = logits[0].double().softmax(-1).gather(-1, best)[:, 0]
        read, predicted = self.vocab.decode(ids.tolist()), self.vocab.decode(best[:, 0].tolist())
        return [Prediction(*row) for row in zip(read, predicted, probabilities.tolist(), strict=True)]

    def _prompt(self, text: str, unknown: Literal["error", "skip"] = "error") -> Tensor:
        """The ids of a prompt, int64 (T)."""
        check_choice("unknown", unknown, ("error", "skip"))
        if not isinstance(text, str):
            raise UsageError(f"a prompt must be text, not {text!r}")
        try:
            ids = self.vocab.encode(normalise(text, **self.normalisation), unknown)
        except UsageError as error:
            raise UsageError(f"the model never saw some characters of the prompt; {error}") from None
        return torch.from_numpy(ids).long()

    @torch.inference_mode()
    def score(self, text: str, chunk: int = 4096) -> float:
        """Mean nats per character of `text` after its first, read from a zero state.

        Characters outside the vocabulary count as <unk> where the model has that symbol and raise
        UsageError where it has not, as does a text of fewer than two characters.
        """
        ids = torch.from_numpy(self.vocab.encode(normalise(text, **self.normalisation))).long()
        if len(ids) < 2:
            raise UsageError("a text needs at least two characters to be scored")
        state, total = None, 0.0
        check_int("chunk", chunk, 1)
        for x_T, y_T in zip(ids[:-1].split(chunk), ids[1:].split(chunk), strict=True):
            nats_BT, state = self._nats(x_T.unsqueeze(0), y_T.unsqueeze(0), state)
            total += nats_BT.sum().item()
        return total / (len(ids) - 1)

    @torch.inference_mode()
    def score_by_position(self, text: str, length: int, rows: int = 1024) -> list[float]:
        """Mean nats at each place of windows of `length` characters, cut one after another, zero state each.

        How much context helps: later places are easier. A model that predicts after a window has not been
        trained on the shorter ones at the first places. Raises UsageError as `score` does, and for a text
        shorter than one window and its last target.
        """
        check_int("length", length, 1)
        ids = torch.from_numpy(self.vocab.encode(normalise(text, **self.normalisation))).long()
        if len(ids) <= length:
            raise UsageError(f"a text needs more than {length} characters to be scored in windows of {length}")
        windows = ids.unfold(0, length + 1, length)
        total = torch.zeros(length, dtype=torch.float64)
        for chosen in windows.split(rows):
            total += self._nats(chosen[:, :-1], chosen[:, 1:], None)[0].sum(0).cpu()
        return (total / len(windows)).tolist()

    def _nats(self, x_BT: Tensor, y_BT: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The loss at every step, float64 (B, T), and the state after the last."""
        device = next(self.network.parameters()).device
        logits, state, _ = self.network.at_every_step(x_BT.to(device), state)
        nats = F.cross_entropy(logits.double().flatten(0, 1), y_BT.to(device).flatten(), reduction="none")
        return nats.view_as(y_BT), state
