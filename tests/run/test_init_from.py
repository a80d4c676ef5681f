"""``init_from``: another run's weights, character by character; and frozen parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import charlm
from charlm.checkpoint.building import build_network
from charlm.checkpoint.format import Checkpoint
from charlm.checkpoint.loading import load_checkpoint
from charlm.run.init_from import adopt
from charlm.text.vocab import Vocab
from tests.helpers import MODELS, model_spec

OLD, NEW = Vocab("abcdefgh", pad=True, unk=True), Vocab("defghxyz", unk=True)
COMMON = "defgh"
LSTM = ("model=lstm", "model.embedding_size=8", "model.hidden_size=16", "model.layers=1", "logger=none")


def checkpoint(spec: dict[str, Any], vocab: Vocab) -> Checkpoint:
    network = build_network(spec, len(vocab)).eval()
    return Checkpoint(network, spec, vocab, {"lowercase": False}, {}, {}, {}, {})


@pytest.mark.parametrize("name", MODELS)
def test_every_family_predicts_common_characters_as_before(name: str) -> None:
    """An oracle that knows no family: logits of common characters, after common characters, are the same numbers."""
    spec = model_spec(name)
    start = checkpoint(spec, OLD)
    network = build_network(spec, len(NEW)).eval()
    assert adopt(network, NEW, start, ()) == "6 of 10 symbols kept, 3 new"
    text = (COMMON * 4)[: network.window or 12]
    with torch.inference_mode():
        logits = [
            net(torch.from_numpy(vocab.encode(text)).long()[None]).logits[..., vocab.encode(COMMON).tolist()]
            for net, vocab in ((start.network, OLD), (network, NEW))
        ]
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize("name", MODELS)
def test_new_characters_keep_their_initial_weights(name: str) -> None:
    spec = model_spec(name)
    torch.manual_seed(1)
    fresh = build_network(spec, len(NEW))
    torch.manual_seed(1)
    network = build_network(spec, len(NEW))
    adopt(network, NEW, checkpoint(spec, OLD), ())
    changed = {n: w for n, w in network.state_dict().items() if not torch.equal(w, fresh.state_dict()[n])}
    assert changed
    for weight_name, weight in fresh.state_dict().items():
        for dimension in [i for i, size in enumerate(weight.shape) if size == len(NEW)]:
            added = torch.tensor(NEW.encode("xyz").tolist())
            kept = network.state_dict()[weight_name].index_select(dimension, added)
            assert torch.equal(kept, weight.index_select(dimension, added))


def test_weights_of_another_size_are_refused() -> None:
    spec = model_spec("gru")
    wider = build_network({**spec, "hidden_size": 300}, len(NEW))
    with pytest.raises(charlm.UsageError, match="leave out model"):
        adopt(wider, NEW, checkpoint(spec, OLD), ())


@pytest.fixture
def earlier(text_file: Path, tmp_path: Path) -> Path:
    overrides = ("data=text", f"data.path={text_file}", "data.bptt=8", "data.batch_size=8", "trainer.max_epochs=3")
    return charlm.train(*LSTM, *overrides, folder=tmp_path / "earlier").folder


@pytest.fixture
def other(text: str, tmp_path: Path) -> list[str]:
    """Another text: other words of the same letters, and new ones."""
    path = tmp_path / "other.txt"
    path.write_text(text[::-1].replace("a", "äö") + "ß")
    return ["data=text", f"data.path={path}", "data.bptt=8", "data.batch_size=8", "logger=none", "trainer.max_epochs=1"]


def test_fine_tuning_starts_where_the_other_run_ended(
    earlier: Path, other: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model's options come from the checkpoint, although the default model is a GRU with others."""
    capsys.readouterr()
    tuned = charlm.train(*other, f"init_from={earlier}", "optimizer.lr=0", folder=tmp_path / "tuned")
    printed = " ".join(capsys.readouterr().out.split())  # a long line may be wrapped anywhere
    assert "symbols kept, 3 new" in printed
    assert tuned.model.config["model"] == charlm.load(earlier).config["model"]
    before, after = (
        load_checkpoint(earlier / "checkpoints/best.ckpt"),
        load_checkpoint(tuned.folder / "checkpoints/last.ckpt"),
    )
    recurrent = {n: w for n, w in before.network.state_dict().items() if not n.startswith(("embedding", "head"))}
    assert recurrent
    for name, weight in recurrent.items():
        assert torch.equal(weight, after.network.state_dict()[name])


def test_frozen_parts_keep_their_weights_also_in_a_resumed_run(earlier: Path, other: list[str], tmp_path: Path) -> None:
    frozen = "parameter_groups.recurrent.frozen=true"
    run = charlm.train(*other, f"init_from={earlier}", frozen, folder=tmp_path / "tuned").folder
    charlm.train(f"resume={run}", "trainer.max_epochs=2")
    before = load_checkpoint(earlier / "checkpoints/best.ckpt").network.state_dict()
    after = load_checkpoint(run / "checkpoints/last.ckpt").network.state_dict()
    for name in before:
        same = before[name].shape == after[name].shape and torch.equal(before[name], after[name])
        assert same == (not name.startswith(("embedding", "head"))), name


def test_a_fine_tuned_run_resumes_without_the_other_run(earlier: Path, other: list[str], tmp_path: Path) -> None:
    twice = [*other, f"init_from={earlier}", "trainer.max_epochs=2"]
    whole = charlm.train(*twice, folder=tmp_path / "whole")
    part = charlm.train(*twice[:-1], "trainer.max_epochs=1", "schedule=constant", folder=tmp_path / "part").folder
    (earlier / "checkpoints/best.ckpt").unlink()
    (earlier / "checkpoints/last.ckpt").unlink()
    resumed = charlm.train(f"resume={part}", "trainer.max_epochs=2")
    assert resumed.history[0]["train_nats"] == whole.history[0]["train_nats"]
    assert len(resumed.history) == 2


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model=gru"], "model is GRU, but init_from=.* is a LSTM: leave out model="),
        (["model.hidden_size=20"], "leave out model"),
        ([f"parameter_groups.{part}.frozen=true" for part in ("embedding", "recurrent", "head")], "nothing is left"),
        (["resume=somewhere"], "give only one of them"),
        (["init_from=nowhere.ckpt"], "there is no checkpoint at nowhere.ckpt"),
    ],
)
def test_what_does_not_fit_is_refused(
    overrides: list[str], sentence: str, earlier: Path, other: list[str], tmp_path: Path
) -> None:
    with pytest.raises(charlm.UsageError, match=sentence):
        charlm.train(*other, f"init_from={earlier}", *overrides, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_model_options_may_be_given(earlier: Path, other: list[str], tmp_path: Path) -> None:
    tuned = charlm.train(*other, f"init_from={earlier}", "model.output_dropout=0.2", folder=tmp_path / "tuned")
    assert tuned.model.config["model"]["output_dropout"] == 0.2
    assert tuned.model.config["model"]["hidden_size"] == 16
