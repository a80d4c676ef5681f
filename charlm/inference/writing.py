"""Writing texts side by side, one character of each at a time.

Shapes: B the texts that are still written, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charlm.inference.constraints.constraint import Constraint
from charlm.inference.decoding import Chooser, Decoding, Floats, Ids, log_softmax
from charlm.inference.steps.steps import Logits, Steps

AHEAD = 256  # random numbers that are drawn at once


class Writer:
    """Texts that continue prompts. Each depends on its own prompt and seed only, to the last bit.

    `rows` has the numbers of the texts that are still written; `draw` chooses one more character of each, and
    `keep` goes on with some of them only.
    """

    def __init__(
        self,
        steps: Steps,
        prompts: Sequence[tuple[Ids, Logits, Any]],
        decoding: Decoding,
        seeds: Sequence[int],
        length: int,
        *,
        first_id: int = 0,
        constraint: Constraint | None = None,
        logprobs: bool = False,
    ) -> None:
        """`prompts` are the ids of each text's prompt, and what `Steps.read` gave for them.

        Ids below `first_id`, the special symbols, are never chosen.
        """
        self._steps, self._choose, self._length, self._first_id = steps, Chooser(decoding), length, first_id
        self._memory, self.constrained = decoding.memory, constraint is not None
        self.rows: Ids = np.arange(len(prompts))
        self._logits_BV = np.concatenate([logits for _, logits, _ in prompts])
        self._state = prompts[0][2] if len(prompts) == 1 else steps.join([state for *_, state in prompts])
        self._rngs = [np.random.default_rng(seed) for seed in seeds]
        self._uniforms = np.empty((len(prompts), 0))
        self._recent_BW = np.full((len(prompts), decoding.memory), -1, np.int64)
        for row, (ids, *_) in enumerate(prompts):
            remembered = ids[len(ids) - min(len(ids), decoding.memory) :]
            self._recent_BW[row, decoding.memory - len(remembered) :] = remembered - first_id
        self._constraint = constraint
        self._places = [constraint.start for _ in prompts] if constraint else []
        self.with_logprobs = logprobs
        self.logprobs_B: Floats | None = None  # of the last choice, under the model itself
        self.written = 0
        self._chosen_B: Ids | None = None  # not yet read by the network
        self._mask_BV: NDArray[np.bool_] | None = None  # what the constraint allows next, once it is known

    def draw(self) -> Ids:
        """The next id of each text, int64 (B). Raises NotFinite if the network's output is."""
        if self._chosen_B is not None:
            self._logits_BV, self._state = self._steps.step(self._chosen_B, self._state)
        logits_BV: NDArray[Any] = self._logits_BV[:, self._first_id :] if self._first_id else self._logits_BV
        if self._constraint is not None:
            logits_BV = np.where(self._allowed_BV()[:, self._first_id :], logits_BV, -np.inf)
        chosen_B = self._choose(logits_BV, self._uniform_B(), self._recent_BW)
        if self._memory:
            self._recent_BW = np.concatenate([self._recent_BW[:, 1:], chosen_B[:, None]], 1)
        if self._first_id:
            chosen_B = chosen_B + self._first_id
        if self.with_logprobs:
            self.logprobs_B = log_softmax(self._logits_BV)[np.arange(len(chosen_B)), chosen_B]
        if self._constraint is not None:
            self._places = [
                self._constraint.advance(place, i) for place, i in zip(self._places, chosen_B.tolist(), strict=True)
            ]
            self._mask_BV = None
        self._chosen_B = chosen_B
        self.written += 1
        return chosen_B

    def ended(self) -> NDArray[np.bool_]:
        """Which texts cannot go on, bool (B), because their constraint allows nothing more."""
        if not self.constrained or self.written == self._length:
            return np.zeros(len(self.rows), bool)
        return np.logical_not(self._allowed_BV().any(-1))

    def keep(self, kept_B: NDArray[np.bool_]) -> None:
        """Go on with these texts only."""
        if kept_B.all():
            return
        places = np.flatnonzero(kept_B)
        self.rows, self._recent_BW = self.rows[places], self._recent_BW[places]
        self._uniforms, self._rngs = self._uniforms[places], [self._rngs[i] for i in places]
        self._places = [self._places[i] for i in places] if self._constraint else []
        if len(places):
            self._state = self._steps.select(self._state, places)
            self._logits_BV = self._logits_BV[places]
            self._chosen_B = None if self._chosen_B is None else self._chosen_B[places]
            self._mask_BV = None if self._mask_BV is None else self._mask_BV[places]

    def _allowed_BV(self) -> NDArray[np.bool_]:
        """What the constraint allows next."""
        if self._mask_BV is None:
            assert self._constraint is not None
            remaining = self._length - self.written
            self._mask_BV = np.stack([self._constraint.allowed(place, remaining) for place in self._places])
        return self._mask_BV

    def _uniform_B(self) -> Floats:
        """The next random number of each text."""
        place = self.written % AHEAD
        if place == 0:
            self._uniforms = np.stack([rng.random(AHEAD) for rng in self._rngs])
        return self._uniforms[:, place]
