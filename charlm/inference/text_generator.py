"""Texts that are drawn from a network's probabilities."""

from __future__ import annotations

import heapq
import itertools
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from charlm.errors import OptionError, UsageError
from charlm.inference import sampling
from charlm.inference.constraints import constraint as constraints
from charlm.inference.constraints.constraint import Constraint
from charlm.inference.decoding import Ids
from charlm.inference.sampling import Sample
from charlm.inference.sampling_options import SamplingOptions, TextOptions, Unknown
from charlm.inference.steps.families import steps_of
from charlm.inference.steps.steps import SteadySteps
from charlm.inference.stopping import Stops
from charlm.inference.writing import Writer
from charlm.models.network import Network
from charlm.options import Count, PositiveInt, checked
from charlm.text.vocab import Vocab, normalise

TOGETHER = 256  # texts that are written side by side


class TextGenerator:
    """A network with the vocabulary and text normalisation that it was trained with."""

    def __init__(self, network: Network, vocab: Vocab, normalisation: dict[str, Any]) -> None:
        self.network, self.vocab, self.normalisation = network, vocab, normalisation
        self._steps: tuple[list[Any], SteadySteps] | None = None

    @property
    def starter_id(self) -> int:
        """The id that is read before a text that starts from nothing: a line break, if the model knows it."""
        starter = next((c for c in "\n " if c in self.vocab.chars), self.vocab.chars[0])
        return int(self.vocab.encode(starter)[0])

    def stream(self, prompt: str = "", length: int = 500, **options: Any) -> Iterator[str]:
        """Yield `length` characters that continue `prompt`, each as soon as it is chosen.

        `options` are those of `SamplingOptions`; with some of them, the text may end earlier, and pieces may be longer.
        An empty prompt starts after a line break. Raises UsageError, before the first character, for invalid options
        and for unknown characters in the prompt.
        """
        chosen = SamplingOptions(length=length, **options)
        self._prompts([prompt], chosen.unknown)
        seed = secrets.randbelow(2**32) if chosen.seed is None else chosen.seed
        writer = self._writer([prompt], [seed], chosen, self._constraint(chosen))
        return sampling.stream(writer, self.vocab, self._read(prompt), length, self._stops(chosen))

    def generate(self, prompt: str = "", length: int = 500, **options: Any) -> str:
        """The `length` characters that continue `prompt`, as one string; options as in `stream`."""
        return "".join(self.stream(prompt, length, **options))

    @checked
    def samples(
        self,
        prompts: str | list[str] = "",
        n: PositiveInt = 1,
        length: Count = 500,
        *,
        best_of: PositiveInt | None = None,
        logprobs: bool = False,
        progress: Callable[[int], object] | None = None,
        **options: Any,
    ) -> Iterator[Sample]:
        """Yield `n` texts that continue each prompt, written side by side; options as in `stream`.

        Their seeds count up from the given one, and each text is the one that its seed makes alone. `logprobs` asks for
        their log-probabilities. `best_of` draws as many texts and yields the `n` of them with the highest mean
        log-probability of a character, best first. `progress` is called with the number of characters that are done.
        """
        each = n if best_of is None else best_of
        if each < n:
            raise OptionError("best_of", f"must be at least the {n} texts that are asked for", best_of)
        chosen = SamplingOptions(length=length, **options)
        prompts = self._prompts(prompts, chosen.unknown)
        first, total = secrets.randbelow(2**32) if chosen.seed is None else chosen.seed, each * len(prompts)
        if first + total > 2**63:
            raise OptionError("seed", f"must leave room for the seeds of {total} texts below 2**63", first)
        jobs = zip((prompt for prompt in prompts for _ in range(each)), itertools.count(first))
        constraint = self._constraint(chosen)
        drawn = self._drawn(jobs, chosen, constraint, logprobs or best_of is not None, progress)
        return drawn if best_of is None else _best(drawn, each, n)

    def _drawn(
        self,
        jobs: Iterator[tuple[str, int]],
        options: SamplingOptions,
        constraint: Constraint | None,
        logprobs: bool,
        progress: Callable[[int], object] | None,
    ) -> Iterator[Sample]:
        """A text for each prompt and seed, as many at a time as are written side by side."""
        stops = self._stops(options)
        while batch := list(itertools.islice(jobs, TOGETHER)):
            texts, seeds = zip(*batch, strict=True)
            writer = self._writer(texts, seeds, options, constraint, logprobs)
            read = [self._read(text) for text in texts]
            found = sampling.finished(writer, self.vocab, read, seeds, options.length, stops, progress)
            for sample, text in zip(found, texts, strict=True):
                yield replace(sample, prompt=text)

    def get_next(self, text: str, unknown: Unknown = "error") -> str:
        """The lesson's `get_next`: the most likely next character after `text`."""
        return self.generate(text, 1, greedy=True, unknown=unknown)

    def get_next_n(self, text: str, n: int, **options: Any) -> str:
        """The lesson's `get_next_n`: `text` and the `n` characters that continue it, each the most likely one.

        The lesson's later models draw them instead: ``temperature=1``; this and other `options` are as in `stream`.
        """
        return text + self.generate(text, n, **{"temperature": 0, **options})

    def _writer(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        options: SamplingOptions,
        constraint: Constraint | None,
        logprobs: bool = False,
    ) -> Writer:
        """A writer of texts that continue `prompts`."""
        steps = self.steps()
        read: dict[str, tuple[Ids, Any, Any]] = {}
        for prompt in prompts:
            if prompt not in read:
                ids = self._started(prompt, options.unknown)
                read[prompt] = (ids, *steps.read(ids))
        return Writer(
            steps,
            [read[prompt] for prompt in prompts],
            options,
            seeds,
            options.length,
            first_id=self.vocab.offset,
            constraint=constraint,
            logprobs=logprobs,
        )

    def _constraint(self, options: TextOptions) -> Constraint | None:
        """What the options allow to be written; None for anything."""
        within = None if options.charset is None else "".join(map(self._read, options.charset))
        found: Constraint | None = None
        if options.regex is not None:
            found = constraints.regex(self.vocab, options.regex, within)
        elif options.json_schema is not None:
            found = constraints.json_schema(self.vocab, options.json_schema, within)
        elif within is not None:
            found = constraints.charset(self.vocab, within)
        if found is not None:
            constraints.check_length(found, options.length)
        return found

    def steps(self) -> SteadySteps:
        """The network one character at a time. They are made anew when a weight has changed."""
        version = _version(self.network)
        if self._steps is None or self._steps[0] != version:
            self._steps = version, steps_of(self.network, len(self.vocab))
        return self._steps[1]

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: all but what can be made again."""
        return {**self.__dict__, "_steps": None}

    def _stops(self, options: TextOptions) -> Stops:
        return Stops([self._read(text) for text in options.stop], options.stop_at)

    def knows(self, text: str) -> bool:
        """Whether the model can read all characters of `text`."""
        return bool(self.vocab.knows(self._read(text)).all())

    def _read(self, text: str) -> str:
        """A text as the model reads it."""
        return normalise(text, **self.normalisation)

    def _prompts(self, prompts: str | list[str], unknown: Unknown) -> list[str]:
        """One or more prompts as a list. Raises UsageError for none, and for unknown characters."""
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if not prompts:
            raise OptionError("prompts", "must have at least one text", prompts)
        for prompt in prompts:
            self._prompt(prompt, unknown)
        return prompts

    def _started(self, prompt: str, unknown: Unknown) -> Ids:
        """The ids of a prompt, or the starter if there are none: int64 (T)."""
        ids: Ids = self._prompt(prompt, unknown).numpy()
        return ids if len(ids) else np.array([self.starter_id])

    @checked
    def _prompt(self, text: str, unknown: Unknown) -> Tensor:
        """The ids of a prompt, int64 (T)."""
        try:
            return self._encode(text, unknown)
        except UsageError as error:
            # sample.py puts its own option in place of this one.
            more = '; unknown="skip" leaves them out'
            raise UsageError(f"the model never saw some characters of the prompt; {error}{more}") from None

    def _encode(self, text: str, unknown: Unknown | None = None) -> Tensor:
        return torch.from_numpy(self.vocab.encode(normalise(text, **self.normalisation), unknown)).long()


def _best(samples: Iterator[Sample], each: int, n: int) -> Iterator[Sample]:
    """The best `n` of each `each` samples, best first."""
    while some := list(
        heapq.nlargest(n, itertools.islice(samples, each), key=lambda sample: sample.mean_logprob or 0.0)
    ):
        yield from some


@torch.no_grad()
def _version(network: Network) -> list[Any]:
    """What changes with the network's weights or with how it computes, as far as a quick look shows."""
    hooks = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]
    tensors = itertools.chain(network.parameters(), network.buffers())
    # The sum shows changes through `data`, which have no version, and inference tensors have none at all.
    weights = [(t.data_ptr(), t.dtype, None if t.is_inference() else t._version, t.sum().item()) for t in tensors]
    return [id(network), getattr(network, "temperature", None), hooks, weights]
