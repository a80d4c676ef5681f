"""``trainer.threads``: which number is chosen, and that choosing changes nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import charlm
from charlm.run import threads
from charlm.run.threads import GAIN, candidates, fastest, own_threads
from tests.helpers import SMALL


@pytest.fixture
def base(text_file: Path) -> list[str]:
    return [*SMALL, "data=text", f"data.path={text_file}", "data.bptt=8", "data.batch_size=8", "model.dropout=0.3",
            "model.layers=2"]  # fmt: skip


@given(seconds=st.lists(st.floats(0.001, 0.09), min_size=1, max_size=5))
def test_more_threads_are_taken_only_if_they_gain_enough(seconds: list[float]) -> None:
    """Against a clock that only the step moves."""
    now, numbers = 0.0, [2**i for i in range(len(seconds))]

    def step() -> None:
        nonlocal now
        now += seconds[numbers.index(torch.get_num_threads())]

    with own_threads():
        chosen = fastest(step, numbers, clock=lambda: now)
    cost = dict(zip(numbers, seconds, strict=True))
    assert cost[chosen] <= GAIN * min(seconds) * 1.0001
    assert all(cost[chosen] * GAIN < cost[fewer] * 1.0001 for fewer in numbers if fewer < chosen and fewer == 1)
    if cost[1] <= GAIN * min(seconds):
        assert chosen == 1


@given(st.integers(1, 200))
def test_candidates_are_ascending_and_end_with_all(most: int) -> None:
    found = candidates(most)
    assert found == sorted(set(found)) and found[-1] == most
    assert set(found[:-1]) == {1, 2, 4, 8, 16, 32, 64, 128} & set(range(1, most))


def test_the_chosen_number_is_recorded_and_measuring_changes_nothing(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout draws random numbers while it is measured."""
    with own_threads():
        torch.set_num_threads(2)
        asked: list[list[int]] = []

        def one(step: object, numbers: list[int]) -> int:
            asked.append(numbers)
            fastest(step, numbers)
            return 1

        monkeypatch.setattr(threads, "fastest", one)
        measured = charlm.train(*base, "trainer.threads=auto", folder=tmp_path / "auto")
        assert torch.get_num_threads() == 2  # for the next run in this process
        given = charlm.train(*base, "trainer.threads=1", folder=tmp_path / "one")
    assert asked == [[1, 2]]
    assert [row["train_nats"] for row in measured.history] == [row["train_nats"] for row in given.history]
    for result in (measured, given):
        assert OmegaConf.load(result.folder / ".hydra/config.yaml").trainer.threads == 1
        assert result.model.config["trainer"]["threads"] == 1


def test_a_resumed_run_takes_the_recorded_number_or_says_what_changes(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    charlm.train(*base, "trainer.threads=2", folder=tmp_path / "run")
    capsys.readouterr()
    charlm.train(f"resume={tmp_path / 'run'}", "trainer.max_epochs=3")
    out = capsys.readouterr().out
    assert "CPU, 2 threads" in out and "bit for bit" not in out
    charlm.train(f"resume={tmp_path / 'run'}", "trainer.max_epochs=4", "trainer.threads=1")
    out = " ".join(capsys.readouterr().out.split())
    assert "trainer.threads=1, but this run began with 2" in out
    assert "not bit for bit that of an uninterrupted run" in out


def test_a_step_that_fails_is_left_to_training(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(step: object, numbers: list[int]) -> int:
        raise RuntimeError

    monkeypatch.setattr(threads, "fastest", broken)
    with own_threads():
        torch.set_num_threads(2)
        result = charlm.train(*base, "trainer.threads=auto", folder=tmp_path / "run")
    assert result.model.config["trainer"]["threads"] == 2


@pytest.mark.parametrize("value", ["0", "true", "many", "1.5"])
def test_other_values_are_refused(value: str, base: list[str], tmp_path: Path) -> None:
    with pytest.raises(charlm.UsageError, match="trainer.threads"):
        charlm.train(*base, f"trainer.threads={value}", folder=tmp_path / "run")
