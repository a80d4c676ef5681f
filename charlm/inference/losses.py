"""What a network predicts of a text, character by character, under a protocol that says what it may look back on.

Shapes: N targets, B rows, T time steps, V vocabulary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from charlm.errors import UsageError
from charlm.inference.decoding import NotFinite
from charlm.inference.observer import nothing
from charlm.inference.unknown import unknown_nats
from charlm.models.network import Network
from charlm.models.state import State
from charlm.output import counted
from charlm.text.vocab import Vocab

BUDGET = 2**22  # logits at once: 32 MB in float64
COLUMNS = 4096  # steps at once, which bounds what the layers keep
ROWS, WINDOW, BATCHES = 64, 256, 200  # nanoGPT's batches; windows:N are read 64 at a time, too
SEED = 1337  # of their places

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Protocol:
    """How a text is read, which decides what a prediction may look back on. `parse` reads its name.

    - ``stream``: as one stream, with the state carried from the beginning to the end.
    - ``streams:B``: cut into B streams of equal length that are read side by side, as validation in training does.
    - ``windows:N``: in consecutive windows of N characters, each read from the initial state.
    - ``nanogpt``: 200 batches of 64 windows of 256 characters at random places, as nanoGPT's ``train.py`` estimates its
      loss. Its places are others, so that figures agree only up to chance.
    """

    name: str
    streams: int = 0
    window: int = 0

    @classmethod
    def parse(cls, name: str) -> Protocol:
        """The protocol of that name. Raises UsageError for any other."""
        if name == "stream":
            return cls(name, streams=1)
        if name == "nanogpt":
            return cls(name, window=WINDOW)
        if found := re.fullmatch("(streams|windows):([1-9][0-9]{0,8})", name):
            return cls(name, **{"streams" if found[1] == "streams" else "window": int(found[2])})
        raise UsageError(
            f"there is no protocol {name!r}: choose stream, streams:64, windows:256 (or other numbers), or nanogpt"
        )

    def describe(self) -> str:
        """The protocol in words."""
        if self.name == "nanogpt":
            return f"nanoGPT's: {BATCHES} random batches of {ROWS} windows of {WINDOW} characters"
        if self.window:
            return f"windows of {self.window:,} characters, each read from the initial state"
        if self.streams > 1:
            return f"{self.streams:,} streams side by side, the state carried in each from beginning to end"
        return "one stream, the state carried from beginning to end"


@dataclass(frozen=True)
class Losses:
    """What was predicted: an entry per target, in the order of the text (for ``nanogpt``, of the batches).

    `text` is the text as the model reads it, `known` which of its characters are in the vocabulary, and `places` (N)
    the position of each target. `nats` (N) is −ln p(target), which includes `price` (N), that of a character outside
    the vocabulary. `ranks` (N) counts the symbols that were more likely, `confidences` (N) has the probability of the
    most likely one, and `distances` (N) the number of characters read since the last reset. A target that the network
    did not predict has rank and distance −1 and the confidence NaN.
    """

    text: str
    protocol: Protocol
    known: NDArray[np.bool_]
    places: NDArray[np.int64]
    nats: NDArray[np.float64]
    price: NDArray[np.float64]
    ranks: NDArray[np.int32]
    confidences: NDArray[np.float32]
    distances: NDArray[np.int64]


@dataclass(frozen=True)
class _Read:
    """A batch's targets: their indices in the ids, and what `Losses` has of each, all (N)."""

    at: NDArray[np.int64]
    nats: NDArray[np.float64]
    ranks: NDArray[np.int32]
    confidences: NDArray[np.float32]
    distances: NDArray[np.int64]


def losses_of(network: Network, vocab: Vocab, text: str, protocol: Protocol, progress: Progress = nothing) -> Losses:
    """The losses of every character of `text` (normalised) after the first.

    A character outside the vocabulary costs −ln p(<unk>), and what it takes to say which one it is (see
    `unknown_nats`). A network without <unk> does not read it. `progress` is called with the number of targets that are
    done, and of all. Raises UsageError for a text that is too short or has no known character, and for a network whose
    output is not finite.
    """
    known = check_text(vocab, text, protocol)
    ids = torch.from_numpy(vocab.encode(text, "unk" if vocab.unk else "skip")).long()
    places = np.arange(len(text)) if vocab.unk else np.flatnonzero(known)  # of the ids
    # Where all is known, nothing is paid to say so: the mean is that of the network's own losses.
    price = np.zeros(len(text)) if known.all() else unknown_nats(text, vocab)
    if protocol.name == "nanogpt":
        read = list(_read(network, len(vocab), ids, protocol, progress))
        drawn = {name: np.concatenate([getattr(part, name) for part in read]) for name in vars(read[0])}
        at, nats = drawn.pop("at"), drawn.pop("nats")
        return Losses(text, protocol, known, at, nats + price[at], price[at], **drawn)

    # Before the first character that it reads, a network without <unk> can only guess.
    nats = np.where(known, math.log(len(vocab)), 0.0) if not vocab.unk else np.zeros(len(text))
    ranks, distances = np.full(len(text), -1, np.int32), np.full(len(text), -1, np.int64)
    confidences = np.full(len(text), np.nan, np.float32)
    for part in _read(network, len(vocab), ids, protocol, progress):
        where = places[part.at]
        nats[where], ranks[where], distances[where] = part.nats, part.ranks, part.distances
        confidences[where] = part.confidences
    nats += price
    targets = np.arange(1, len(text))
    return Losses(text, protocol, known, targets, nats[1:], price[1:], ranks[1:], confidences[1:], distances[1:])


def check_text(vocab: Vocab, text: str, protocol: Protocol) -> NDArray[np.bool_]:
    """Which characters of `text` are known. Raises UsageError for a text that cannot be evaluated."""
    if len(text) < 2:
        raise UsageError(f"a text of {counted(len(text), 'character')} has nothing to predict: give one of two or more")
    known = vocab.knows(text)
    if not known.any():
        raise UsageError("the model knows no character of this text: give one in the script that it was trained on")
    if protocol.name == "nanogpt" and (len(text) <= WINDOW or not (vocab.unk or known.all())):
        raise UsageError(f"nanogpt needs a text of more than {WINDOW} characters, all of them known: use stream")
    return known


@torch.inference_mode()
def logits_of(network: Network, vocab: Vocab, text: str, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """The logits (N, V) for all characters of `text` that the network predicts, and their ids (N)."""
    ids_N = torch.from_numpy(vocab.encode(text, "unk" if vocab.unk else "skip")).long()
    read = [(logits_NV.cpu(), ids_N[at_N]) for at_N, logits_NV, _ in _outputs(network, len(vocab), ids_N, protocol)]
    return torch.cat([logits for logits, _ in read]), torch.cat([targets for _, targets in read])


@torch.inference_mode()
def _read(network: Network, size: int, ids_N: Tensor, protocol: Protocol, progress: Progress) -> Iterator[_Read]:
    """What the network predicts of the targets, some columns of a batch at a time."""
    done, total = 0, BATCHES * ROWS * WINDOW if protocol.name == "nanogpt" else len(ids_N) - 1
    for at_N, logits_NV, distances_N in _outputs(network, size, ids_N, protocol):
        logs_NV = logits_NV.double().log_softmax(-1)
        y_N1 = ids_N[at_N].to(logs_NV.device).unsqueeze(-1)
        found_N1 = logs_NV.gather(-1, y_N1)
        if not found_N1.isfinite().all():
            raise NotFinite
        yield _Read(
            at_N.numpy(),
            -found_N1[:, 0].cpu().numpy(),
            ranks_of(logs_NV, found_N1, y_N1).cpu().numpy(),
            logs_NV.amax(-1).exp().float().cpu().numpy(),
            distances_N.numpy(),
        )
        done += len(at_N)
        progress(done, total)


def ranks_of(logs_NV: Tensor, found_N1: Tensor, y_N1: Tensor) -> Tensor:
    """How many symbols are more likely than the target; of equal ones, those with lower ids."""
    ids_V = torch.arange(logs_NV.shape[-1], device=logs_NV.device)
    before_NV = (logs_NV > found_N1) | ((logs_NV == found_N1) & (ids_V < y_N1))
    return before_NV.sum(-1).int()


def _outputs(network: Network, size: int, ids_N: Tensor, protocol: Protocol) -> Iterator[tuple[Tensor, ...]]:
    """Of some columns of a batch at a time: the targets' indices in `ids_N`, their logits (N, V), and their distances.

    `size` is that of the vocabulary.
    """
    device, last = next(network.parameters()).device, len(ids_N) - 1
    for at_BL in _batches(last, protocol):
        state: State | None = None
        columns = min(COLUMNS, max(1, BUDGET // (len(at_BL) * size * (network.window or 1))))
        for start in range(0, at_BL.shape[1], columns):
            at_BT = at_BL[:, start : start + columns]
            x_BT = ids_N[at_BT.clamp(max=last) - 1].to(device)
            logits, state, _ = network.at_every_step(x_BT, state)
            distances_BT = torch.arange(start + 1, start + at_BT.shape[1] + 1).expand_as(at_BT)
            there_BT = at_BT <= last  # the last stream may end earlier
            yield at_BT[there_BT], logits[there_BT.to(device)], distances_BT[there_BT]


def _batches(targets: int, protocol: Protocol) -> Iterator[Tensor]:
    """The indices of targets that are read from the initial state together: (B, L), from 1.

    The last stream ends with indices of more than `targets` where it is shorter than the others.
    """
    if targets == 0:  # a single known character, and unknown ones
        return
    if protocol.streams:
        rows = min(protocol.streams, targets)
        columns = -(-targets // rows)
        yield torch.arange(1, rows * columns + 1).view(rows, columns)
    elif protocol.name == "nanogpt":
        rng = torch.Generator().manual_seed(SEED)
        for _ in range(BATCHES):
            yield torch.randint(1, targets - WINDOW + 2, (ROWS, 1), generator=rng) + torch.arange(WINDOW)
    else:
        whole, rest = divmod(targets, protocol.window)
        if whole:
            yield from torch.arange(1, whole * protocol.window + 1).view(whole, -1).split(ROWS)
        if rest:
            yield torch.arange(targets - rest + 1, targets + 1)[None]
