"""Exponential moving average of the weights, with a warm-up."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from charlm.options import Probability, checked


class EMA(WeightAveraging):
    """Validates and saves an exponential moving average of the weights, while training continues with the raw ones.

    After n updates the next one multiplies the average by min(`decay`, (1 + n) / (10 + n)), as TensorFlow's
    ExponentialMovingAverage does with ``num_updates``, so that the first weights are soon forgotten. The first update
    copies the weights.
    """

    @checked
    def __init__(
        self,
        decay: Annotated[
            Probability, Field(description="Share of the average that a step keeps, once the average is warm.")
        ] = 0.999,
    ) -> None:
        def average(average: Tensor, weights: Tensor, updates: Tensor | int) -> Tensor:
            # `updates` may be on the GPU, where reading its value would wait for the device.
            share = ((1 + updates) / (10 + updates) * average.new_ones(())).clamp(max=decay)
            return average + (1 - share) * (weights - average)

        # The carried state and the metrics are no weights: buffers are not averaged.
        super().__init__(use_buffers=False, avg_fn=average)
