"""Texts that are searched for and not drawn: beams, endings of words, fillings of gaps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from charlm.errors import OptionError
from charlm.inference.constraints.constraint import Constraint
from charlm.inference.decoding import log_softmax
from charlm.inference.sampling import Sample
from charlm.inference.sampling_options import GAP, TextOptions, Unknown
from charlm.inference.search.beams import beam_search
from charlm.inference.search.completion import Reader, complete, word_ends
from charlm.inference.search.infilling import infill
from charlm.inference.stopping import End
from charlm.inference.text_generator import TextGenerator
from charlm.options import Count, PositiveInt, checked

CONTEXT = 64  # characters after a gap that decide about it


class Ending(NamedTuple):
    """What may follow to end the current word, the probability that the word ends exactly so, and the whole word."""

    text: str
    probability: float
    word: str


class Filling(NamedTuple):
    """What may stand in a gap, and the log-probability of it and of the text after the gap."""

    text: str
    logprob: float


class TextSearcher(TextGenerator):
    """A `TextGenerator` that can also search."""

    _last_reader: Reader | None = None

    @checked
    def beams(
        self,
        prompts: str | list[str] = "",
        n: PositiveInt = 1,
        length: Count = 500,
        *,
        width: PositiveInt = 8,
        progress: Callable[[int], object] | None = None,
        **options: Any,
    ) -> Iterator[Sample]:
        """Yield the `n` most probable texts that beam search finds after each prompt, most probable first.

        `width` texts are followed at once. `options` are those of `TextOptions`. `progress` is called with 1 after each
        character. Raises UsageError, before the first
        text, for mistakes as in `stream`.
        """
        if width < n:
            raise OptionError("width", f"must be at least the {n} texts that are asked for", width)
        chosen = TextOptions(length=length, **options)
        prompts = self._prompts(prompts, chosen.unknown)
        constraint = self._constraint(chosen)
        return (beam for prompt in prompts for beam in self._beams(prompt, n, width, chosen, constraint, progress))

    def _beams(
        self,
        prompt: str,
        n: int,
        width: int,
        options: TextOptions,
        constraint: Constraint | None,
        progress: Callable[[int], object] | None,
    ) -> Iterator[Sample]:
        steps, stops, read = self.steps(), self._stops(options), self._read(prompt)
        ids = self._started(prompt, options.unknown)

        def ended(text: tuple[int, ...]) -> bool:
            return stops.find(read, self.vocab.decode(text)) is not None

        found = beam_search(
            steps,
            *steps.read(ids),
            options.length,
            width,
            first_id=self.vocab.offset,
            ended=ended if stops else None,
            constraint=constraint,
            progress=progress,
        )
        texts: dict[str, Sample] = {}
        for beam in found:
            text = self.vocab.decode(beam.ids)
            reason = "length" if len(beam.ids) == options.length else "complete"
            end = stops.find(read, text) or End(text, reason)
            logprobs = beam.logprobs[: len(end.text)]
            # Without their stop texts, several may be the same.
            texts.setdefault(end.text, Sample(prompt, end.text, None, end.reason, sum(logprobs), logprobs))
        yield from sorted(texts.values(), key=lambda sample: -(sample.logprob or 0))[:n]

    @checked
    def complete(
        self, text: str, n: PositiveInt = 10, unknown: Unknown = "error", max_length: PositiveInt = 30
    ) -> list[Ending]:
        """The `n` most probable endings of the word that `text` ends with, and their exact probabilities.

        They are found by search and not drawn. An empty ending means that the word is complete already. There are fewer
        than `n` where there are no more, or where the search for more would take too long. When the same text has grown
        since the last call, only its new characters are read.
        """
        ends, ids = word_ends(self.vocab), self._started(text, unknown)
        logits, state = self._reader().read(ids)
        all_found = complete(self.steps(), logits, state, n, ends, max_length, first_id=self.vocab.offset)
        found = [ending for ending in all_found.endings if ending.probability >= all_found.bound]
        before = np.flatnonzero(ends[ids])  # the last of these is where the word begins
        begun = self.vocab.decode(ids[before[-1] + 1 if len(before) else 0 :])
        texts = [self.vocab.decode(ending.ids) for ending in found]
        return [Ending(text, e.probability, begun + text) for text, e in zip(texts, found, strict=True)]

    @checked
    def candidates(self, text: str, n: PositiveInt = 10, unknown: Unknown = "skip") -> list[tuple[str, float]]:
        """The `n` most probable characters after `text`, with their probabilities; quick for a text that grows.

        Special symbols are never among them. Raises NotFinite where the network diverges.
        """
        logits, _ = self._reader().read(self._started(text, unknown))
        p_V = np.exp(log_softmax(logits))[0]
        best = self.vocab.offset + np.argsort(-p_V[self.vocab.offset :], kind="stable")[:n]
        return list(zip(self.vocab.decode(best), p_V[best].tolist(), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: all but what can be made again."""
        return {**super().__getstate__(), "_last_reader": None}

    def _reader(self) -> Reader:
        """What reads the texts of `complete` and `candidates`."""
        steps = self.steps()
        if self._last_reader is None or self._last_reader.steps is not steps:
            self._last_reader = Reader(steps)
        return self._last_reader

    @checked
    def infill(
        self,
        text: str,
        n: PositiveInt = 10,
        unknown: Unknown = "error",
        *,
        max_length: PositiveInt = 20,
        width: PositiveInt = 64,
    ) -> list[Filling]:
        """The `n` best texts of at most `max_length` characters for the gap ``___`` in `text`, best first.

        Beam search with `width` beams proposes them, and the first `CONTEXT` characters after the gap decide. Raises
        UsageError unless there is one gap with a text after it.
        """
        left, gap, right = text.partition(GAP)
        if not gap or GAP in right:
            raise OptionError("text", f"must have one gap, written {GAP}, as in 'the {GAP} of man'", text)
        if not right:
            raise OptionError(
                "text", f"must go on after the gap {GAP}; to continue a text, give it as the prompt", text
            )
        ids = self._started(left, unknown), self._prompt(right, unknown).numpy()[:CONTEXT]
        found = infill(self.steps(), *ids, max_length, width, first_id=self.vocab.offset)
        return [Filling(self.vocab.decode(filled.ids), filled.logprob) for filled in found[:n]]
