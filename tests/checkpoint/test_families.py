"""Whatever can be trained can be opened and resumed: networks of many kinds from the user's own package."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import charlm
from charlm import UsageError
from charlm.checkpoint.building import build_network
from charlm.checkpoint.loading import load_checkpoint
from charlm.training.module import CharLM
from tests.helpers import run_train

FAMILIES = [
    *("Tied", "ReassignedBias", "WeightNorm", "WeightDrop", "BooleanBuffer", "MixedTypes", "NonPersistentBuffer"),
    "Transposed",
]

Train = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Trains a family of `tests.families` for three steps, and trusts it only while it trains."""

    def run(family: str, *others: str) -> Path:
        text_file.write_text(text_file.read_text()[:400])
        with monkeypatch.context() as patch:
            patch.setenv("CHARLM_TRUST", "tests")
            run_train(
                *("data=text", f"data.path={text_file}", "data.bptt=8", "data.batch_size=4", "logger=none"),
                *("callbacks=none", "trainer.max_epochs=1", "trainer.limit_train_batches=3", *others),
                *("trainer.accelerator=cpu", f"model._target_=tests.families.{family}"),
                *("model.embedding_size=8", "model.hidden_size=8", f"hydra.run.dir={tmp_path}/run"),
            )
        return tmp_path / "run"

    return run


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_opens_and_resumes(train: Train, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(family)
    last = run / "checkpoints/last.ckpt"
    opened = load_checkpoint(last, trust=["tests"])
    kept = weights(last)
    for name, tensor in opened.network.state_dict().items():
        assert torch.equal(tensor, kept[f"network.{name}"])
        assert tensor.dtype == kept[f"network.{name}"].dtype
    assert len(charlm.load(run, trust=["tests"]).generate("a", 20, seed=1)) == 20

    monkeypatch.setenv("CHARLM_TRUST", "tests")
    run_train(f"resume={run}", "trainer.max_epochs=2")
    resumed = torch.load(last, weights_only=True)
    assert resumed["global_step"] == 6
    assert any(not torch.equal(kept[name], resumed["state_dict"][name]) for name in kept)


def test_tied_weights_stay_tied(train: Train) -> None:
    network = charlm.load(train("Tied"), trust=["tests"]).network
    assert network.head.weight is network.embedding.weight


def test_a_buffer_that_is_not_stored_is_made(train: Train) -> None:
    network = charlm.load(train("NonPersistentBuffer"), trust=["tests"]).network
    assert torch.equal(network.scale, torch.linspace(0.5, 1.5, 8))


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
@pytest.mark.parametrize("family", ["Tied", "BooleanBuffer"])
def test_a_network_of_another_precision_opens_in_it(train: Train, family: str, precision: str) -> None:
    network = charlm.load(train(family, f"trainer.precision={precision}"), trust=["tests"]).network
    assert {p.dtype for p in network.parameters()} == {getattr(torch, {"6": "float64", "b": "bfloat16"}[precision[0]])}


def test_opening_draws_no_random_numbers(train: Train) -> None:
    run = train("Tied")
    before = torch.get_rng_state()
    charlm.load(run, trust=["tests"])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_needs_the_users_word(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train("Tied")
    with pytest.raises(UsageError, match=r"set CHARLM_TRUST=tests in the environment, or give trust=\['tests'\]"):
        charlm.load(run)
    with pytest.raises(UsageError, match="CHARLM_TRUST"):
        charlm.load(run, trust=["test", "tests.famil"])
    with pytest.raises(UsageError, match="CHARLM_TRUST"):
        charlm.load(run, trust=["tests.families.Tied"])
    charlm.load(run, trust="tests.families")
    monkeypatch.setenv("CHARLM_TRUST", "other, tests")
    charlm.load(run)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("tests.families.NotANetwork", "nor a subclass of charlm.models.network.Network"),
        ("tests.families.Nothing", "nor a subclass"),
        ("tests.nowhere.Tied", "No module named 'tests.nowhere'"),
    ],
)
def test_trust_is_not_enough(target: str, sentence: str) -> None:
    for trust in (["tests"], None):
        with pytest.raises(UsageError, match=sentence):
            build_network({"_target_": target}, 9, trust)


@pytest.mark.parametrize(
    ("family", "sentence"),
    [
        (
            "Another",
            r"model: .* its checkpoint cannot be opened again: .*'other' is \[\d\] in the file, \[\d\] in",
        ),
        ("Keeper", "model: its state in a checkpoint must be plain values and tensors"),
    ],
)
def test_what_could_not_be_opened_is_refused_before_its_first_step(
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    family: str,
    sentence: str,
) -> None:
    monkeypatch.setattr(CharLM, "training_step", lambda *arguments: pytest.fail("a step was trained"))
    with pytest.raises(SystemExit) as end:
        train(family)
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n")) == (2, 1)
    assert re.search(sentence, error), error
    assert not (tmp_path / "run/checkpoints").exists()  # so that the same command can be run again


def test_what_can_no_longer_be_opened_after_its_first_epoch_does_not_train_to_the_end(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train("LeakyWeightDrop")
    assert (
        "not be opened again: its model and its weights do not fit together: its model has no 'recurrent.weight_hh"
        in (capsys.readouterr().err)
    )
