"""Averages of weights and ensembles of predictions, compared with NumPy, and at the end of an SGDR run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import charlm
from charlm.checkpoint.building import build_network
from charlm.checkpoint.format import pack
from charlm.errors import UsageError
from charlm.models.ensemble import Ensemble
from charlm.models.network import Network
from charlm.models.recurrent import GRU, LSTM, RNN
from charlm.models.state import State, map_state, select_rows
from charlm.models.windowed import Windowed
from charlm.run import cycles
from charlm.run.cycles import validation_loss
from charlm.text.vocab import Vocab
from tests.helpers import ROOT, SMALL, data_module, run_train, summary

V, B, T = 7, 3, 12
CHARS = "abcdefg"
SPEC = {"_target_": "charlm.models.recurrent.GRU", "embedding_size": 4, "hidden_size": 6}


def members(kind: str) -> list[Network]:
    torch.manual_seed(0)
    if kind == "windows":
        return [Windowed(GRU(V, 4, 6), 5).double().eval(), Windowed(RNN(V, 4, 8), 5).double().eval()]
    if kind == "mixed precision":
        return [GRU(V, 4, 6).double().eval(), GRU(V, 4, 6).bfloat16().eval()]
    return [GRU(V, 4, 6).double().eval(), LSTM(V, 5, 8).double().eval(), RNN(V, 4, 6).double().eval()]


@pytest.fixture
def x_BT() -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))


def probabilities(logits: Tensor) -> np.ndarray:
    values = np.exp(logits.detach().double().numpy())
    return values / values.sum(-1, keepdims=True)


@pytest.mark.parametrize("kind", ["steps", "windows", "mixed precision"])
def test_probabilities_are_the_mean_of_the_members(kind: str, x_BT: Tensor) -> None:
    networks = members(kind)
    ensemble = Ensemble(networks)
    for call in (lambda n: n(x_BT), lambda n: n.at_every_step(x_BT)):
        output = call(ensemble)
        expected = np.mean([probabilities(call(network).logits) for network in networks], 0)
        np.testing.assert_allclose(np.exp(output.logits.detach().numpy()), expected, rtol=1e-7)
        torch.testing.assert_close(ensemble.head(output.hidden), output.logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["steps", "windows"])
@pytest.mark.parametrize("sizes", [[1] * T, [5, 3, 4], [11, 1]])
def test_chunks_equal_the_whole(kind: str, sizes: list[int], x_BT: Tensor) -> None:
    ensemble = Ensemble(members(kind))
    whole, state, parts = ensemble.at_every_step(x_BT), None, []
    for chunk in x_BT.split(sizes, 1):
        logits, state, _ = ensemble.at_every_step(chunk, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole.logits, rtol=0, atol=1e-12)
    found: list[tuple[Tensor, Tensor]] = []

    def flat(state: State) -> list[Tensor]:
        every: list[Tensor] = []
        map_state(lambda part: every.append(part) or part, state)
        return every

    found = list(zip(flat(state), flat(whole.state), strict=True))
    assert all(len(one) == B and torch.allclose(one.double(), other.double()) for one, other in found)


def test_rows_can_be_selected(x_BT: Tensor) -> None:
    ensemble, rows = Ensemble(members("steps")), torch.tensor([2, 0])
    state = ensemble(x_BT[:, :6]).state
    expected = ensemble(x_BT[:, 6:], state).logits[rows]
    torch.testing.assert_close(ensemble(x_BT[rows, 6:], select_rows(state, rows)).logits, expected)


def save(
    path: Path,
    seed: int,
    chars: str = CHARS,
    spec: dict[str, Any] = SPEC,
    lowercase: bool = False,
    config: dict[str, Any] | None = None,
) -> Path:
    torch.manual_seed(seed)
    vocab = Vocab(chars)
    weights = {f"network.{name}": w for name, w in build_network(spec, len(vocab)).state_dict().items()}
    torch.save({"charlm": pack(spec, vocab, {"lowercase": lowercase}, config or {}, {}), "state_dict": weights}, path)
    return path


def test_the_average_is_that_of_every_weight(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{seed}.ckpt", seed) for seed in range(3)]
    states = [torch.load(path, weights_only=True)["state_dict"] for path in paths]
    for name, weight in charlm.average(paths).network.state_dict().items():
        expected = np.mean([state[f"network.{name}"].double().numpy() for state in states], 0)
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6, atol=1e-9)


def test_an_average_of_independent_runs_warns(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{seed}.ckpt", seed, config={"seed": seed}) for seed in range(2)]
    with pytest.warns(UserWarning, match=r"0\.ckpt and .*1\.ckpt are of independent runs"):
        charlm.average(paths)
    charlm.average([paths[0], paths[0]])


def test_an_ensemble_is_opened_with_a_list(tmp_path: Path) -> None:
    paths = [save(tmp_path / "a.ckpt", 1), save(tmp_path / "b.ckpt", 2, spec={**SPEC, "hidden_size": 9})]
    one, other, both = charlm.load(paths[0]), charlm.load(paths[1]), charlm.load(paths)
    x = torch.arange(V)[None]
    expected = np.mean([probabilities(model.network(x).logits) for model in (one, other)], 0)
    np.testing.assert_allclose(np.exp(both.network(x).logits.detach().numpy()), expected, rtol=1e-5)
    command = [
        sys.executable,
        str(ROOT / "sample.py"),
        "--checkpoint",
        *map(str, paths),
        "--seed",
        "3",
        "--length",
        "40",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == both.generate("", 40, seed=3)
    assert done.stderr == f"{paths[0]} + {paths[1]} · seed 3\n"


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    first = save(tmp_path / "a.ckpt", 1)
    other = {"chars": save(tmp_path / "b.ckpt", 1, "abcdefh"), "lower": save(tmp_path / "c.ckpt", 1, lowercase=True)}
    with pytest.raises(UsageError, match=r"b\.ckpt has another vocabulary than .*a\.ckpt"):
        charlm.load([first, other["chars"]])
    with pytest.raises(UsageError, match=r"c\.ckpt has another normalisation than .*a\.ckpt"):
        charlm.load([first, other["lower"]])
    larger = save(tmp_path / "d.ckpt", 1, spec={**SPEC, "hidden_size": 9})
    with pytest.raises(UsageError, match=r"d\.ckpt has another model than .*a\.ckpt"):
        charlm.average([first, larger])
    windowed = save(tmp_path / "e.ckpt", 1, spec={**SPEC, "window": 4})
    with pytest.raises(UsageError, match="cannot be one ensemble: all or none must predict after a window"):
        charlm.load([first, windowed])
    with pytest.raises(UsageError, match="give a list"):
        charlm.load([])


@pytest.fixture
def sgdr(text_file: Path) -> list[str]:
    return [*SMALL, "data=text", f"data.path={text_file}", "data.bptt=8", "schedule=sgdr", "optimizer.lr=3e-2"]


def test_an_sgdr_run_reports_its_cycle_ends(
    sgdr: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_train(*sgdr, "data.batch_size=8", "callbacks=ema", "trainer.max_epochs=4", f"hydra.run.dir={run}")
    found, out = summary(run), capsys.readouterr().out
    ends = [run / f"checkpoints/{name}.ckpt" for name in found["cycles_combined"]]
    assert [path.stem for path in ends] == ["cycle-1", "cycle-2"]  # the third cycle is not complete
    # Validation is one stream, read from an empty state: what `score` does.
    validation = text[int(0.9 * len(text)) :]
    assert charlm.average(ends).score(validation) != charlm.load(ends).score(validation)
    for kind in ("average", "ensemble"):
        assert f"{kind} of 2 cycle ends" in out and f"{found[f'{kind}_val_nats']:.4f} nats/char" in out
    averaged = charlm.load(run / "checkpoints/average.ckpt")
    for name, weight in charlm.average(ends).network.state_dict().items():
        assert torch.equal(weight, averaged.network.state_dict()[name])
    with pytest.raises(SystemExit):
        run_train(f"resume={run}/checkpoints/average.ckpt")
    assert "holds averaged weights" in capsys.readouterr().err


def test_the_protocol_is_that_of_val_nats(sgdr: list[str], text: str, tmp_path: Path) -> None:
    from charlm.run.compose import compose_job

    run = tmp_path / "run"
    run_train(*sgdr, "data.batch_size=8", "trainer.max_epochs=3", "callbacks=none", f"hydra.run.dir={run}")
    settings, _ = compose_job([*sgdr, "data.batch_size=8"])
    data = data_module(text, val=0.1, batch_size=8, bptt=8)
    best = charlm.load(run / "checkpoints/best.ckpt").network
    found = validation_loss(best, data, settings, run / "checkpoints")
    assert found == pytest.approx(summary(run)["best_val_nats"], rel=1e-6)
    assert validation_loss(Ensemble([best, best]), data, settings, run / "checkpoints") == pytest.approx(
        found, rel=1e-6
    )


def test_a_finished_run_is_kept_whatever_goes_wrong(
    sgdr: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(cycles, "average", fails)
    run_train(*sgdr, "trainer.max_epochs=3", f"hydra.run.dir={tmp_path}/run")
    assert summary(tmp_path / "run")["epochs"] == 3
    assert "the ends of the cycles could not be combined: no space left" in capsys.readouterr().out


def test_one_cycle_is_no_ensemble(sgdr: list[str], tmp_path: Path) -> None:
    run_train(*sgdr, "trainer.max_epochs=2", f"hydra.run.dir={tmp_path}/run")
    assert not (tmp_path / "run/checkpoints/average.ckpt").exists()
    assert "cycles_combined" not in summary(tmp_path / "run")
