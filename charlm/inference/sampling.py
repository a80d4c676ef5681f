"""Drawn texts: pieces of one as soon as they are chosen, or many side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from charlm.inference.stopping import Stops
from charlm.inference.writing import Writer
from charlm.text.vocab import Vocab


@dataclass(frozen=True)
class Sample:
    """A text that continues `prompt`, which is not part of it.

    `seed` alone makes it again, with the same options. `stop_reason` is why it ends: its "length" was used up, a
    "stop" text followed, a "sentence" or "paragraph" ended, or the constraint was "complete". `logprob` is the natural
    logarithm of the text's probability under the model itself, whatever the decoding, and `logprobs` that of each of
    its characters; None unless they were asked for.
    """

    prompt: str
    text: str
    seed: int | None
    stop_reason: str
    logprob: float | None = None
    logprobs: tuple[float, ...] | None = None

    @property
    def mean_logprob(self) -> float | None:
        """The mean log-probability of a character; −inf for a text without any, None where it was not asked for."""
        if self.logprobs is None:
            return None
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else -np.inf


def stream(writer: Writer, vocab: Vocab, prompt: str, length: int, stops: Stops) -> Iterator[str]:
    """The pieces of one text, each as soon as nothing that follows can change it."""
    characters = vocab.offset * " " + vocab.chars
    text, shown = "", 0
    while writer.written < length and not (writer.constrained and writer.ended().any()):
        piece = characters[writer.draw()[0]]
        if not stops:
            yield piece
            continue
        text += piece
        end = stops.find(prompt, text)
        settled = len(end.text) if end else stops.settled(prompt, text)
        if settled > shown:
            yield text[shown:settled]
            shown = settled
        if end:
            return
    if shown < len(text):
        yield text[shown:]


def finished(
    writer: Writer,
    vocab: Vocab,
    prompts: Sequence[str],
    seeds: Sequence[int],
    length: int,
    stops: Stops,
    progress: Callable[[int], object] | None = None,
) -> list[Sample]:
    """The texts that `writer` writes, in the order of their prompts.

    `progress` is called with numbers of characters that are done: `length` for each text, also if it ends earlier.
    """
    characters = vocab.offset * " " + vocab.chars
    texts = ["" for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    found: dict[int, Sample] = {}

    def end(row: int, text: str, reason: str) -> None:
        kept = tuple(logprobs[row][: len(text)])
        sums = (sum(kept), kept) if writer.with_logprobs else ()
        found[row] = Sample(prompts[row], text, seeds[row], reason, *sums)
        if progress is not None:
            progress(length - writer.written)

    while len(writer.rows):
        if writer.written == length:
            for row in writer.rows.tolist():
                end(row, texts[row], "length")
            break
        going = ~writer.ended()
        for row in writer.rows[~going].tolist():
            end(row, texts[row], "complete")
        writer.keep(going)
        if not len(writer.rows):
            break
        chosen = writer.draw().tolist()
        rows = writer.rows.tolist()
        if progress is not None:
            progress(len(rows))
        for row, i in zip(rows, chosen, strict=True):
            texts[row] += characters[i]
        if writer.logprobs_B is not None:
            for row, logprob in zip(rows, writer.logprobs_B.tolist(), strict=True):
                logprobs[row].append(logprob)
        if stops:
            for row in rows:
                if ending := stops.find(prompts[row], texts[row]):
                    end(row, *ending)
            writer.keep(np.array([row not in found for row in rows]))
    return [found[row] for row in range(len(prompts))]
