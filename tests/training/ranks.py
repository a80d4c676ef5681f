"""Small trainings for test_ddp.py, in one process or in several: ``python -m tests.training.ranks FILE WORLD``.

The latter starts the other ranks, trains every kind, and writes what rank 0 sees to FILE.
"""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from charlm.checkpoint.building import build_network
from charlm.data.module import CharDataModule
from charlm.models.network import Network
from charlm.models.recurrent import GRU, LSTM
from charlm.models.windowed import Windowed
from charlm.text.corpus import Corpus
from charlm.training.callbacks.ema import EMA
from charlm.training.module import CharLM
from charlm.training.objective import Objective
from tests import families
from tests.helpers import data_module, model_spec, trainer

TEXT = "the quick brown fox jumps over the lazy dog, again and again. " * 17
MORE, LAST = "0123456789 " * 12, "numbers and words, " * 5

Result = dict[str, Any]


def gru(size: int) -> Network:
    return GRU(size, 8, 16)


def lstm(size: int) -> Network:
    return LSTM(size, 8, 16, layers=2)


def windowed(size: int) -> Network:
    return Windowed(GRU(size, 8, 16), 8)


def own(name: str) -> Callable[[int], Network]:
    """A network with parameters and buffers that charlm's own do not have."""
    return lambda size: getattr(families, name)(size, embedding_size=8, hidden_size=8)


def lesson(size: int) -> Network:
    return build_network(model_spec("rnn_cell"), size)


def mixed(*texts: str) -> Corpus:
    main, *extra = (Corpus(text, "made up", "0" * 64) for text in texts)
    return Corpus(main.text, main.source, main.sha256, (), tuple(extra))


WINDOWS = {"mode": "windows", "stride": 3}
KINDS: dict[str, tuple[Callable[[int], Network], str | Corpus, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "streams": (gru, TEXT, {}, {}, {}),
    "streams, lstm, epochs": (lstm, TEXT, {"bptt": 7}, {}, {"max_epochs": 3}),
    "streams, jitter": (gru, TEXT, {"bptt_jitter": 3}, {}, {"max_epochs": 2}),
    "streams, rows that do not divide": (gru, TEXT, {"batch_size": 5}, {}, {}),
    "streams, one row to validate": (gru, TEXT, {"val": 12}, {}, {}),
    "streams, the lesson's cell": (lesson, TEXT, {}, {"lr": 1e-3}, {}),
    "streams, tied weights": (own("Tied"), TEXT, {}, {}, {}),
    "streams, weight norm": (own("WeightNorm"), TEXT, {}, {}, {}),
    "streams, boolean buffer": (own("BooleanBuffer"), TEXT, {}, {}, {}),
    "streams, mixed types": (own("MixedTypes"), TEXT, {}, {}, {}),
    "streams, weight in another layout": (own("Transposed"), TEXT, {}, {}, {}),
    "streams, accumulated": (gru, TEXT, {}, {}, {"accumulate_grad_batches": 3}),
    "streams, clipped": (gru, TEXT, {}, {}, {"gradient_clip_val": 0.05}),
    "streams, averaged": (gru, TEXT, {}, {}, {"ema": True, "max_epochs": 2}),
    "streams, summed, penalty": (gru, TEXT, {}, {"objective": Objective(reduction="sum", l2=1e-3)}, {}),
    "streams, several validations": (gru, TEXT, {}, {}, {"val_check_interval": 5}),
    "windows, 3 left over": (gru, TEXT, {**WINDOWS, "train": 500}, {}, {}),
    "windows, 1 left over, accumulated": (gru, TEXT, {**WINDOWS, "train": 506}, {}, {"accumulate_grad_batches": 4}),
    "windows, 1 left over, penalty": (gru, TEXT, {**WINDOWS, "train": 506}, {"objective": Objective(l2=1e-2)}, {}),
    "windows, predicting after them": (windowed, TEXT, {**WINDOWS, "train": 500}, {}, {"max_epochs": 2}),
    "windows, split at random": (gru, TEXT, {**WINDOWS, "split": "random"}, {}, {}),
    "mix": (gru, mixed(TEXT, MORE), {"ratio": [3, 1]}, {}, {"max_epochs": 3}),
    "mix of three, summed": (
        *(lstm, mixed(TEXT, MORE, LAST), {"ratio": [1, 2, 1]}),
        *({"objective": Objective(reduction="sum", l2=1e-3), "lr": 1e-3}, {"max_epochs": 3}),
    ),
}


def train(kind: str, folder: Path, world: int = 1) -> Result:
    """The losses of each epoch, the weights, and the carried state at the end."""
    build, text, options, module_options, trainer_options = KINDS[kind]
    given, more = dict(trainer_options), dict(module_options)
    pl.seed_everything(1, verbose=False)
    data: CharDataModule = data_module(text, **options)
    module = CharLM(build(len(data.vocab)), functools.partial(torch.optim.Adam, lr=more.pop("lr", 1e-2)), **more)
    losses = Losses()
    callbacks: list[pl.Callback] = [losses, *([EMA(decay=0.9)] if given.pop("ema", False) else [])]
    several = {"devices": world, "strategy": "ddp"} if world > 1 else {}
    loop = trainer(folder, callbacks=callbacks, **several, **given)
    loop.fit(module, datamodule=data)
    return {"losses": losses.seen, "weights": module.network.state_dict(), "count": losses.count}


class Losses(pl.Callback):
    """Everything that a training logs, and the loss of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.count = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.seen.append(float(pl_module.step_nats))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen += [float(trainer.callback_metrics[name]) for name in ("val/nats", "val/accuracy")]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.seen.append(float(pl_module.train_nats.compute()))
        self.count += int(pl_module.train_nats.count)


def main() -> None:
    out, world = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    children = []
    if "LOCAL_RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"}
        for rank in range(1, world):
            again = [sys.executable, "-m", "tests.training.ranks", *sys.argv[1:]]
            children.append(subprocess.Popen(again, env={**os.environ, "LOCAL_RANK": str(rank)}))
    with tempfile.TemporaryDirectory() as folder:
        found = {kind: train(kind, Path(folder), world) for kind in KINDS}
    if os.environ["LOCAL_RANK"] == "0":
        torch.save(found, out)
    assert not any(child.wait() for child in children)


if __name__ == "__main__":
    main()
