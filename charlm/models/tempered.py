"""A network whose predictions are sharpened or softened by a temperature."""

from __future__ import annotations

from torch import Tensor

from charlm.models.network import Network, Output
from charlm.models.state import State


class Tempered(Network):
    """`network` with its logits divided by `temperature`, as fitted to calibrate it (Guo et al. 2017, 1706.04599)."""

    def __init__(self, network: Network, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature, self.window = network, temperature, network.window

    def forward(self, x_BT: Tensor, state: State | None = None) -> Output:
        """The network's output with other logits."""
        logits, state, hidden = self.network(x_BT, state)
        return Output(logits / self.temperature, state, hidden)

    def at_every_step(self, x_BT: Tensor, state: State | None = None) -> Output:
        """The same after each input."""
        logits, state, hidden = self.network.at_every_step(x_BT, state)
        return Output(logits / self.temperature, state, hidden)

    def initial_state(self, batch_size: int) -> State:
        """That of the network."""
        return self.network.initial_state(batch_size)
