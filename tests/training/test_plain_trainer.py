"""A plain `pl.Trainer` with `CharLM` and `CharDataModule` writes checkpoints that `charlm.load` opens."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

import charlm
from charlm.checkpoint.building import build_network, specify
from charlm.data.module import CharDataModule
from charlm.data.sizes import rung
from charlm.models.network import Network
from charlm.models.recurrent import GRU, LSTM, RNN
from charlm.models.windowed import Windowed
from charlm.training.module import CharLM
from tests.helpers import MODELS, model_spec, run_train, trainer


class Mine(GRU):
    """A user's own family, which passes on what it does not know."""

    def __init__(self, vocab_size: int, scale: float = 1.0, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.scale = scale


class Awkward(GRU):
    """A network that is built with a tensor."""

    def __init__(self, vocab_size: int, start: torch.Tensor) -> None:
        super().__init__(vocab_size, 8, 16)
        self.start = start


def fitted(folder: Path, network: Network, text: str, **options: Any) -> tuple[CharLM, ModelCheckpoint]:
    """The example of the notebook, on a small text."""
    saver = ModelCheckpoint(folder, monitor="val/nats", save_last=True)
    module = CharLM(network)
    loop = trainer(folder, enable_checkpointing=True, callbacks=[saver], num_sanity_val_steps=2, **options)
    loop.fit(module, datamodule=CharDataModule.from_text(text, batch_size=4, bptt=8))
    return module, saver


@pytest.mark.parametrize(
    "build",
    [
        lambda size: GRU(size, 8, 16),
        lambda size: RNN(size, 8, hidden_size=16, identity=True),
        lambda size: LSTM(vocab_size=size, hidden_size=16, layers=2, dropout=0.1),
        lambda size: Windowed(GRU(size, hidden_size=16), 8),
        lambda size: Mine(size, 0.5, hidden_size=16),
    ],
)
def test_its_checkpoint_opens_as_the_network_that_was_trained(tmp_path: Path, text: str, build: Any) -> None:
    size = len(set(text))
    module, saver = fitted(tmp_path, build(size), text)
    model = charlm.load(saver.last_model_path, trust=["tests"])
    ids = torch.arange(size).repeat(2, 3)
    with torch.inference_mode():
        assert torch.equal(model.network(ids).logits, module.network.eval()(ids).logits)
    assert len(model.generate("a", 5)) == 5
    assert model.corpus["name"] == "text" and model.progress["epoch"] == 1
    best = saver.best_model_score
    assert best is not None and model.progress["val_nats"] == pytest.approx(best.item(), rel=1e-6)
    if isinstance(model.network, Mine):
        assert model.network.scale == 0.5
        with pytest.raises(charlm.UsageError, match="CHARLM_TRUST=tests"):
            charlm.load(saver.last_model_path)


@pytest.mark.filterwarnings("ignore")  # about the folder, and the loss that is not validated
def test_it_resumes_and_the_loss_is_that_of_the_weights(tmp_path: Path, text: str) -> None:
    first = fitted(tmp_path, GRU(len(set(text)), 8, 16), text)[1].best_model_path
    module = CharLM(GRU(len(set(text)), 8, 16))
    saver = ModelCheckpoint(tmp_path, monitor="val/nats", save_last=True)
    loop = trainer(tmp_path, enable_checkpointing=True, callbacks=[saver], max_epochs=2, limit_val_batches=0)
    loop.fit(module, datamodule=CharDataModule.from_text(text, batch_size=4, bptt=8), ckpt_path=first)
    loop.save_checkpoint(tmp_path / "more.ckpt")
    assert charlm.load(first).progress.keys() == {"epoch", "val_nats"}
    nats = loop.callback_metrics["train/nats"].item()  # the second epoch has no validation
    assert charlm.load(tmp_path / "more.ckpt").progress == {"epoch": 2, "train_nats": pytest.approx(nats)}


def test_train_py_says_how_its_checkpoint_is_resumed(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    saver = fitted(tmp_path / "checkpoints", GRU(len(set(text)), 8, 16), text)[1]
    with pytest.raises(SystemExit):
        run_train(f"resume={saver.last_model_path}")
    err = capsys.readouterr().err
    assert "was not written by train.py: resume it with trainer.fit(…, ckpt_path=…)" in err and "init_from=" in err


def test_without_validation_the_training_loss_is_kept(tmp_path: Path, text: str) -> None:
    loop, module = trainer(tmp_path, limit_val_batches=0), CharLM(GRU(len(set(text)), 8, 16))
    loop.fit(module, datamodule=CharDataModule.from_text(text, batch_size=4, bptt=8, val=0))
    loop.save_checkpoint(tmp_path / "a.ckpt")
    nats = charlm.load(tmp_path / "a.ckpt").progress["train_nats"]
    assert nats == pytest.approx(loop.callback_metrics["train/nats"].item()) and 0 < nats < 2 * math.log(9)


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda size: Awkward(size, torch.zeros(1)), "Awkward was built with more than plain values"),
        (lambda size: GRU(size + 1, 8, 16), "do not fit"),  # another vocabulary than the data's
        (lambda size: type("Local", (GRU,), {"__qualname__": "f.<locals>.Local"})(size), "is not a subclass"),
    ],
)
def test_what_cannot_be_described_trains_and_says_so_at_the_start(
    tmp_path: Path, text: str, build: Any, why: str
) -> None:
    with pytest.warns(UserWarning, match=f"charlm.load will not open .*{why}"):
        module, saver = fitted(tmp_path, build(len(set(text))), text)
    with pytest.raises(charlm.UsageError, match="can be resumed, but not opened: .* says how to build"):
        charlm.load(saver.last_model_path)


def test_a_network_with_too_few_symbols_is_refused_at_the_start(tmp_path: Path, text: str) -> None:
    size = len(set(text))
    for network in (GRU(size - 1, 8, 16), Windowed(GRU(vocab_size=size - 1, hidden_size=16), 8)):
        with pytest.raises(charlm.UsageError, match=f"is built for {size - 1} symbols, but the text has {size}"):
            fitted(tmp_path, network, text)


class Swapped(GRU):
    """A network whose first argument is another size."""

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__(vocab_size, 8, hidden_size)


@pytest.mark.filterwarnings("ignore:charlm.load will not open")
def test_a_network_is_asked_for_its_symbols_by_name(tmp_path: Path, text: str) -> None:
    fitted(tmp_path, Swapped(4, len(set(text))), text)


def test_a_text_in_memory_chooses_its_sizes(text: str) -> None:
    data = CharDataModule.from_text(text * 40)
    assert (data.batch_size, data.bptt) == rung(data.characters)[:2] and data.chosen == {"batch_size", "bptt"}
    assert repr(data) == (
        f"<CharDataModule: train {data.sizes['train']:,}, val {data.sizes['val']:,} characters; "
        f"batch size {data.batch_size}, bptt {data.bptt}>"
    )


@pytest.mark.parametrize(("given", "why"), [("", "the text is empty"), (b"abc", "a text is a str, not bytes")])
def test_what_is_no_text_is_refused(given: Any, why: str) -> None:
    with pytest.raises(charlm.UsageError, match=why):
        CharDataModule.from_text(given)


def test_describing_the_network_does_not_change_the_training(tmp_path: Path, text: str) -> None:
    weights = []
    for entry in (None, {"anything": 1}):
        pl.seed_everything(0, verbose=False)
        module = CharLM(GRU(len(set(text)), 8, 16, layers=2, dropout=0.5), entry=entry)
        trainer(tmp_path).fit(module, datamodule=CharDataModule.from_text(text, batch_size=4, bptt=8))
        weights.append(module.network.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("name", MODELS)
def test_a_specification_is_the_inverse_of_building(name: str) -> None:
    network = build_network(model_spec(name), 20)
    spec = {key: value for key, value in model_spec(name).items() if value is not None or key != "window"}
    assert specify(network) == spec
    assert specify(copy.deepcopy(network)) == specify(pickle.loads(pickle.dumps(network))) == spec


def test_a_batch_as_text() -> None:
    data = CharDataModule.from_text("ab cd\nef gh " * 20, batch_size=4, bptt=5, val=0)
    lines = data.show_batch(batches=2, rows=2).splitlines()
    assert lines[0] == "batch 1 of 12: 4 rows" and len(lines) == 10
    x1, y1 = lines[1].split("x  ")[1], lines[2].split("y  ")[1]
    assert x1 == "ab␣cd" and y1 == "b␣cd⏎"
    assert lines[6].split("x  ")[1] == "⏎ef␣g"  # the stream goes on where it ended
