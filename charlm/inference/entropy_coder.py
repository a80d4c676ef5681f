"""A range coder that encodes and decodes by the same calls, so that both sides cannot but take the same path.

Each call takes what to encode, and returns it; a decoder is given None and returns what it decodes.

Shapes: N symbols at once, V alternatives.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charlm.errors import UsageError

LEAST = 2.0**-24  # what constriction adds at most to a probability, so that every symbol can be encoded
SLACK = 128  # bits: more than a range coder holds back

Symbols = NDArray[np.int32]


def constriction() -> Any:
    """The entropy coder, an optional package. Raises UsageError without it."""
    try:
        import constriction as package
    except ImportError:
        raise UsageError('compression needs the package constriction: pip install -e ".[compress]"') from None
    return package


class Coder(ABC):
    """The common part of `Encoder` and `Decoder`. `bits` is the information so far, -log2 p, before any rounding."""

    bits = 0.0

    def __init__(self) -> None:
        self._models = constriction().stream.model
        self._categorical = self._models.Categorical(perfect=False)

    def choose(self, p_NV: NDArray[np.float64], symbols_N: Symbols | None) -> Symbols:
        """Code one symbol for each row of probabilities."""
        if p_NV.shape[1] == 1:  # no choice
            return np.zeros(len(p_NV), np.int32)
        chosen_N = self._code(symbols_N, self._categorical, p_NV)
        p_N = p_NV[np.arange(len(p_NV)), chosen_N]
        self._count(p_N)
        return chosen_N

    def decide(self, p: float, true: bool | None) -> bool:
        """Code a decision that is true with probability `p`."""
        decided = bool(self._code(None if true is None else int(true), self._models.Bernoulli(p, perfect=False)))
        self._count(np.array([p if decided else 1 - p]))
        return decided

    def uniform(self, size: int, value: int | None) -> int:
        """Code a number from 0 to `size` - 1, all equally likely; `size` is at least 2 and below 2**24."""
        found = int(self._code(value, self._models.Uniform(size)))
        self.bits += math.log2(size)
        return found

    def _count(self, p_N: NDArray[np.float64]) -> None:
        self.bits -= float(np.log2(np.maximum(p_N, 5e-324)).sum())

    @abstractmethod
    def _code(self, symbols: Any, model: Any, *parameters: Any) -> Any: ...


class Encoder(Coder):
    """Collects the bytes of what it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self._queue = constriction().stream.queue.RangeEncoder()

    def get_bytes(self) -> bytes:
        """All that was encoded."""
        return bytes(self._queue.get_compressed().astype("<u4").tobytes())

    def _code(self, symbols: Any, model: Any, *parameters: Any) -> Any:
        self._queue.encode(symbols, model, *parameters)
        return symbols


class Decoder(Coder):
    """Decodes `payload`, the bytes of an encoder.

    All calls raise UsageError where the bytes cannot come from one. `name` is the file in these errors.
    """

    def __init__(self, payload: bytes, name: str) -> None:
        super().__init__()
        self._damaged = UsageError(f"{name} is damaged: its compressed text makes no sense, get the file again")
        if len(payload) % 4:
            raise self._damaged
        self._queue = constriction().stream.queue.RangeDecoder(np.frombuffer(payload, "<u4").astype(np.uint32))
        self._left = 8.0 * len(payload) + SLACK

    def _count(self, p_N: NDArray[np.float64]) -> None:
        super()._count(p_N)
        # The decoder reads zeros for ever after the end. A true file holds at least this much:
        self._left += float(np.minimum(np.log2(p_N + LEAST), 0).sum())
        if self._left < 0:
            raise self._damaged

    def _code(self, symbols: Any, model: Any, *parameters: Any) -> Any:
        try:
            return self._queue.decode(model, *parameters)
        except AssertionError:
            raise self._damaged from None
