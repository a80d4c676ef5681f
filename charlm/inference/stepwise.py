"""A network's predictions as a range coder needs them: the same bits each time, one character of each stream a step.

Shapes: S streams, V vocabulary.
"""

from __future__ import annotations

import platform
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from charlm.errors import UsageError
from charlm.inference.entropy_coder import Symbols, constriction
from charlm.inference.language_model import LanguageModel
from charlm.models.network import Network
from charlm.models.state import State

PROBE = 256  # steps: an adapting network has changed by then


class Stepper:
    """The network of `model`, which reads `streams` texts side by side from its initial state.

    Each text starts after `LanguageModel`'s starter, a line break.
    """

    def __init__(self, model: LanguageModel, streams: int) -> None:
        self.streams, self._network, self._vocab_size = streams, model.network, len(model.vocab)
        self.start: Symbols = np.full(streams, model.starter_id, np.int32)
        self._device = next(model.network.parameters()).device
        self._state: State | None = None

    def step(self, read_S: Symbols) -> NDArray[np.float64]:
        """The probabilities of what follows `read_S`, the ids that follow those of the last step: (S, V)."""
        x_S1 = torch.from_numpy(read_S.astype(np.int64)).unsqueeze(1).to(self._device)
        logits_S1V, self._state, _ = self._network.at_every_step(x_S1, self._state)
        p_SV: NDArray[np.float64] = logits_S1V[:, -1].double().softmax(-1).cpu().numpy()
        if not np.isfinite(p_SV).all():
            raise UsageError("the network's output is not finite, so it cannot compress: use another checkpoint")
        return p_SV

    def fingerprint(self) -> int:
        """The CRC-32 of the probabilities after some ids: another machine may differ in their last bits.

        The next step starts from the initial state again.
        """
        self._state, found = None, 0
        for step in range(PROBE):
            ids_S = (np.arange(self.streams, dtype=np.int32) + 7 * step) % self._vocab_size
            found = zlib.crc32(self.step(ids_S).tobytes(), found)
        self._state = None
        return found


@contextmanager
def reproducible(network: Network, threads: int) -> Iterator[int]:
    """In this context, PyTorch uses `threads` threads and the network is in evaluation mode, without gradients."""
    before, modes = torch.get_num_threads(), [(module, module.training) for module in network.modules()]
    torch.set_num_threads(threads)
    network.eval()
    try:
        # Not inference_mode: a network that adapts its weights needs to turn gradients on again.
        with torch.no_grad():
            yield threads
    finally:
        torch.set_num_threads(before)
        for module, training in modes:
            module.training = training


def usable_threads() -> int:
    """PyTorch's number of threads, as far as one byte can name it."""
    return min(torch.get_num_threads(), 255)


def build(network: Network) -> tuple[str, ...]:
    """What decides the last bits of the network's output, as far as it has names; see `charlm.inference.clm_file`."""
    weight = next(network.parameters())
    device = torch.cuda.get_device_name(weight.device) if weight.device.type == "cuda" else weight.device.type
    dtype = str(weight.dtype).removeprefix("torch.")
    version = ".".join(platform.python_version_tuple()[:2])
    capability = torch.backends.cpu.get_cpu_capability()
    return str(torch.__version__), capability, device, dtype, _constriction_version(), np.__version__, version


def _constriction_version() -> str:
    from importlib.metadata import version

    constriction()  # a clear error without it
    return version("constriction")
