"""From logits to the next character: the options of decoding, and one filter of the logits for each.

A further option is a field of `Decoding` and a function of the same name below.

Shapes: B rows, V vocabulary, W the characters that a row remembers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from charlm.errors import UsageError
from charlm.options import NonNegative, Options, PositiveInt

Ids: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

BELOW_ONE = 1 - 2**-50  # keeps a share of a sum below the sum, which rounding might reach
SMALLEST = 1e-290  # a temperature with which logits do not overflow; it is greedy
Share = Annotated[float, Field(gt=0, le=1)]


class Decoding(Options):
    """How the next character is chosen from the model's probabilities: filters, in this order, then a draw."""

    repetition_penalty: Annotated[float, Field(ge=1)] | None = None
    """Divide the probability of a character by this for each character by which it makes a repetition too long."""
    repetition_length: PositiveInt = 8
    """Characters that may be repeated in a row without that penalty."""
    repetition_window: PositiveInt = 256
    """The last characters, those of the prompt included, in which repetitions are looked for."""
    temperature: NonNegative = 0.8
    """Values below 1 give safer text, above 1 wilder text; 0 is greedy."""
    top_k: PositiveInt | None = None
    """Draw from this number of most likely characters only."""
    top_p: Share | None = None
    """Draw from the fewest most likely characters that have this probability together (nucleus sampling)."""
    min_p: Share | None = None
    """Draw from the characters that have at least this share of the most likely character's probability."""
    typical_p: Share | None = None
    """Draw from the fewest characters that have this probability together and are neither too likely nor too unlikely:
    those first whose surprise is nearest to the mean surprise (locally typical sampling)."""
    greedy: bool = False
    """Always choose the most likely character."""

    @property
    def memory(self) -> int:
        """How many of the last characters decide about the next one, besides the model."""
        return self.repetition_window if self.repetition_penalty is not None else 0


Filter: TypeAlias = Callable[[Floats, Decoding, Ids], Floats]
FILTERS: dict[str, Filter] = {}


def logits_filter(function: Filter) -> Filter:
    """Register a filter for the option of its name. Filters run in the order in which they are defined.

    A filter gets logits (B, V), the options, and the last characters of each row, int64 (B, W), -1 where there are
    none. It returns logits, −inf for what must not be chosen, and leaves at least one finite logit in each row.
    """
    FILTERS[function.__name__] = function
    return function


@logits_filter
def repetition_penalty(logits_BV: Floats, options: Decoding, recent_BW: Ids) -> Floats:
    """Make what goes on with a repetition less likely.

    If the last n characters occurred before in the window and c came after them, choosing c again makes the
    repetition n + 1 long: the probability of c is divided by penalty^(n + 1 - repetition_length) if that is more than
    1. Letters as such are not punished, as they are by the penalty of CTRL (Keskar et al. 2019, arXiv:1909.05858),
    which is for words.
    """
    assert options.repetition_penalty is not None
    rows, size = recent_BW.shape
    if size < 2:
        return logits_BV
    # matched[b, j]: how many characters before position j are those at the end of the row
    matched_BW = np.zeros((rows, size), np.int64)
    still = np.ones((rows, size), bool)
    for n in range(size - 1):
        still[:, : n + 1] = False  # nothing is before the window's first character
        last_B1 = recent_BW[:, size - 1 - n : size - n]
        still[:, n + 1 :] &= (recent_BW[:, : size - 1 - n] == last_B1) & (last_B1 >= 0)
        if not still.any():
            break
        matched_BW += still
    longest_BV = np.zeros(logits_BV.shape, np.int64)
    row_BW = np.broadcast_to(np.arange(rows)[:, None], recent_BW.shape)
    known = recent_BW >= 0
    np.maximum.at(longest_BV, (row_BW[known], recent_BW[known]), matched_BW[known])
    excess_BV = np.where(longest_BV > 0, longest_BV + 1 - options.repetition_length, 0).clip(min=0)
    return logits_BV - np.log(options.repetition_penalty) * excess_BV


@logits_filter
def temperature(logits_BV: Floats, options: Decoding, recent_BW: Ids) -> Floats:
    """Divide by the temperature, after the largest logit became 0. Raises NotFinite where there is no largest logit."""
    largest_B1 = logits_BV.max(-1, keepdims=True)
    check_finite(largest_B1)
    return (logits_BV - largest_B1) / max(options.temperature, SMALLEST)


@logits_filter
def top_k(logits_BV: Floats, options: Decoding, recent_BW: Ids) -> Floats:
    """Keep the k most likely characters (Fan et al. 2018, arXiv:1805.04833); of equally likely ones, the first."""
    assert options.top_k is not None
    order_BV = _best_first(logits_BV)
    return _keep(logits_BV, order_BV, np.arange(logits_BV.shape[1]) < options.top_k)


@logits_filter
def top_p(logits_BV: Floats, options: Decoding, recent_BW: Ids) -> Floats:
    """Keep the fewest most likely characters with the mass p (Holtzman et al. 2020, arXiv:1904.09751)."""
    assert options.top_p is not None
    return _keep_mass(logits_BV, _best_first(logits_BV), options.top_p)


@logits_filter
def min_p(logits_BV: Floats, options: Decoding, recent_BW: Ids) -> Floats:
    """Keep what has at least the share min_p of the highest probability (Nguyen et al. 2024, arXiv:2407.01082)."""
    assert options.min_p is not None
    least_B1 = logits_BV.max(-1, keepdims=True) + np.log(options.min_p)
    return np.where(logits_BV >= least_B1, logits_BV, -np.inf)


@logits_filter
def typical_p(logits_BV: Floats, options: Decoding, recent_BW: Ids) -> Floats:
    """Keep the characters whose surprise is nearest to the entropy (Meister et al. 2023, arXiv:2202.00666)."""
    assert options.typical_p is not None
    surprise_BV = -log_softmax(logits_BV)
    p_BV = np.exp(-surprise_BV)
    entropy_B1 = np.where(p_BV > 0, p_BV * np.where(p_BV > 0, surprise_BV, 0), 0).sum(-1, keepdims=True)
    distance_BV = np.abs(surprise_BV - entropy_B1)
    return _keep_mass(logits_BV, np.argsort(distance_BV, axis=-1, kind="stable"), options.typical_p)


class NotFinite(UsageError):
    """The network's output is not finite."""

    def __init__(self) -> None:
        super().__init__(
            "the network's output is not finite: it diverges (try a lower learning rate), or a relu network reads "
            "further than the windows that it was trained on"
        )


def filters(options: Decoding) -> list[Filter]:
    """The filters that `options` asks for."""
    left_out = {"temperature"} if is_greedy(options) else set()
    return [f for name, f in FILTERS.items() if getattr(options, name) is not None and name not in left_out]


def is_greedy(options: Decoding) -> bool:
    """Whether nothing is drawn."""
    return options.greedy or options.temperature == 0


class Chooser:
    """Chooses characters by `options`."""

    def __init__(self, options: Decoding) -> None:
        self._options, self._filters, self._greedy = options, filters(options), is_greedy(options)
        self._simple = self._filters == [temperature]
        self._temperature = max(options.temperature, SMALLEST)

    def __call__(self, logits_BV: NDArray[Any], uniform_B: Floats, recent_BW: Ids) -> Ids:
        """The next id of each row, int64 (B).

        `uniform_B` are random numbers in [0, 1): a row's choice depends on its own logits, number and memory only.
        Logits of −inf are never chosen. Raises NotFinite for a row whose largest logit is not finite.
        """
        logits_BV = logits_BV.astype(np.float64)
        if self._simple and len(logits_BV) == 1:
            return self._choose_one(logits_BV[0], uniform_B)
        if self._greedy:  # otherwise the temperature checks it
            check_finite(logits_BV.max(-1))
        for function in self._filters:
            logits_BV = function(logits_BV, self._options, recent_BW)
        if self._greedy:
            return logits_BV.argmax(-1)
        sums_BV = np.exp(logits_BV).cumsum(-1)  # the temperature has made the largest logit 0
        drawn_B1 = uniform_B[:, None] * BELOW_ONE * sums_BV[:, -1:]
        return (sums_BV <= drawn_B1).sum(-1)

    def _choose_one(self, logits_V: Floats, uniform_1: Floats) -> Ids:
        """The same for one row and no filter but the temperature, in half the time."""
        largest = logits_V[logits_V.argmax()]  # not a number if one of them is not; faster than max
        if not math.isfinite(largest):
            raise NotFinite
        logits_V -= largest
        if self._temperature != 1:
            logits_V /= self._temperature
        sums_V = np.add.accumulate(np.exp(logits_V))
        return np.array([sums_V.searchsorted(float(uniform_1[0]) * BELOW_ONE * float(sums_V[-1]), "right")])


def check_finite(logits_BV: NDArray[Any]) -> None:
    """Raise NotFinite unless all logits are finite."""
    if not np.isfinite(logits_BV).all():
        raise NotFinite


def log_softmax(logits_BV: NDArray[Any]) -> Floats:
    """The log-probabilities, float64, never above 0. Raises NotFinite for a row whose largest logit is not finite."""
    largest_B1 = logits_BV.max(-1, keepdims=True)
    check_finite(largest_B1)
    shifted_BV = np.asarray(logits_BV, np.float64) - largest_B1
    return shifted_BV - np.log(np.exp(shifted_BV).sum(-1, keepdims=True))


def _best_first(logits_BV: Floats) -> Ids:
    """The ids of each row, most likely first; of equally likely ones, the lower id."""
    return np.argsort(-logits_BV, axis=-1, kind="stable")


def _keep(logits_BV: Floats, order_BV: Ids, kept_BV: NDArray[np.bool_]) -> Floats:
    """The logits with −inf where `kept_BV`, which is in the order of `order_BV`, is false."""
    mask_BV = np.zeros(logits_BV.shape, bool)
    np.put_along_axis(mask_BV, order_BV, np.broadcast_to(kept_BV, order_BV.shape), -1)
    return np.where(mask_BV, logits_BV, -np.inf)


def _keep_mass(logits_BV: Floats, order_BV: Ids, mass: float) -> Floats:
    """Keep the first characters of `order_BV` until they have the probability `mass` together."""
    if mass == 1:  # which the sum may never or too early reach, as it is rounded
        return logits_BV
    p_BV = np.take_along_axis(np.exp(log_softmax(logits_BV)), order_BV, -1)
    before_BV = p_BV.cumsum(-1) - p_BV
    kept_BV = before_BV < mass
    kept_BV[:, 0] = True
    return _keep(logits_BV, order_BV, kept_BV)
