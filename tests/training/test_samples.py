"""Samples during training: when, of what, and without disturbing it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import charlm
from charlm.training.callbacks.samples import Samples
from tests.helpers import SMALL, run_train


@pytest.fixture
def base(text_file: Path) -> list[str]:
    return [*SMALL, "data=text", f"data.path={text_file}", "data.bptt=8", "data.batch_size=8", "model.dropout=0"]


def test_every_prompt_at_every_temperature(base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    several = ["callbacks.samples.prompt=[ab,c d]", "callbacks.samples.temperature=[0,1.5]"]
    run_train(*base, *several, "callbacks.samples.length=20", "data.val=0", f"hydra.run.dir={run}")
    blocks = (run / "samples.txt").read_text().split("--- ")[1:]
    headings = [block.splitlines()[0] for block in blocks]
    assert headings[:4] == [
        f"epoch 1, prompt {prompt!r}, temperature {temperature}"
        for prompt in ("ab", "c d")
        for temperature in ("0", "1.5")
    ]
    assert len(blocks) == 8
    model = charlm.load(run / "checkpoints/last.ckpt")
    assert blocks[4].splitlines()[1] == "ab" + model.generate("ab", 20, greedy=True)
    assert blocks[7].splitlines()[1] == "c d" + model.generate("c d", 20, temperature=1.5, seed=0)
    assert blocks[4].splitlines()[1] in " ".join(capsys.readouterr().out.split())


def test_samples_within_an_epoch_disturb_nothing(base: list[str], tmp_path: Path) -> None:
    weights = []
    for name, minutes in (("without", "null"), ("with", "1e-9")):
        run = tmp_path / name
        often = [f"callbacks.samples.every_minutes={minutes}", "callbacks.samples.length=5", "model.layers=2"]
        run_train(*base[:-1], "model.dropout=0.3", *often, f"hydra.run.dir={run}")
        weights.append(torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"])
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    text = (tmp_path / "with/samples.txt").read_text()
    assert text.count("--- epoch 1, step") == 27 and text.count("--- epoch 1\n") == 1
    assert (tmp_path / "without/samples.txt").read_text().count("---") == 2


@pytest.mark.parametrize("prompt", ["xyz", "[ab,xyz]"])
def test_a_prompt_that_the_model_cannot_know_is_refused(
    prompt: str, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with pytest.raises(SystemExit):
        run_train(*base, f"callbacks.samples.prompt={prompt}", f"hydra.run.dir={run}")
    err = capsys.readouterr().err
    assert err.startswith("error: callbacks.samples.prompt='xyz': ") and "'x'" in err and err.count("\n") == 1
    assert not run.exists()
    run_train(*base, f"callbacks.samples.prompt={prompt}", "data.unk=true", f"hydra.run.dir={run}")


@pytest.mark.parametrize("wrong", ["prompt=[]", "temperature=[]", "temperature=[0.5,-1]", "every_minutes=0"])
def test_wrong_values_are_named(wrong: str, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_train(*base, f"callbacks.samples.{wrong}")
    assert capsys.readouterr().err.startswith(f"error: callbacks.samples.{wrong.partition('=')[0]}")


def test_samples_of_earlier_checkpoints_are_kept() -> None:
    samples = Samples(prompt="a", temperature=0.5)
    samples.load_state_dict({"rows": [[1, "a text"], [2, 30, "b", 0.7, "b text"]]})
    assert samples.state_dict()["rows"] == [[1, None, "a", 0.5, "a text"], [2, 30, "b", 0.7, "b text"]]
