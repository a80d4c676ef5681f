"""``task=lr_find`` and ``task=profile``: what they measure, and that they leave nothing else behind."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import charlm
from charlm.errors import OptionError
from charlm.training import random_state
from charlm.training.range_test import Point, RangeOptions, growing, suggest
from tests.helpers import SMALL, run_train

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def base(text_file: Path) -> list[str]:
    return [*SMALL, "data=text", f"data.path={text_file}", "data.bptt=8", "data.batch_size=8", "trainer.threads=1"]


def test_a_range_test_reads_the_loss_of_training_at_growing_learning_rates(base: list[str], tmp_path: Path) -> None:
    """The first losses, at a learning rate too small to matter, are those of the initial network."""
    options = ["lr_find.lowest=1e-9", "lr_find.highest=1", "lr_find.steps=60"]
    result = charlm.lr_find(*base, *options, folder=tmp_path / "range")
    assert [p.learning_rate for p in result.points] == pytest.approx([1e-9 * 1e9 ** (i / 59) for i in range(60)])
    each = ("optimizer.lr=0", "trainer.max_epochs=1", "logger=csv", "trainer.log_every_n_steps=1")
    still = charlm.train(*base, *each, folder=tmp_path / "still")
    with (still.folder / "csv/metrics.csv").open() as file:
        losses = [float(row["train/nats_step"]) for row in csv.DictReader(file) if row["train/nats_step"]]
    assert [point.nats for point in result.points[:10]] == pytest.approx(losses[:10], abs=1e-4)
    assert min(point.smoothed for point in result.points) < result.points[0].smoothed - 0.1
    assert result.suggestion is not None and 1e-4 < result.suggestion < 1


def test_a_range_test_leaves_a_picture_and_a_csv_only(base: list[str], tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    result = charlm.lr_find(*base, folder=tmp_path / "range")
    assert torch.equal(torch.get_rng_state(), before)
    assert {path.name for path in result.folder.iterdir()} == {".hydra", "lr_find.csv", "lr_find.png"}
    assert (result.folder / "lr_find.png").read_bytes().startswith(PNG)
    with (result.folder / "lr_find.csv").open() as file:
        rows = [Point(*map(float, row.values())) for row in csv.DictReader(file)]
    assert rows == result.points


def test_a_range_test_stops_where_the_loss_diverges(base: list[str], tmp_path: Path) -> None:
    options = ["optimizer=sgd", "lr_find.lowest=1", "lr_find.highest=1e6", "lr_find.steps=100"]
    points = charlm.lr_find(*base, *options, folder=tmp_path / "range").points
    assert 2 < len(points) < 100
    lowest = min(point.smoothed for point in points)
    assert not points[-1].smoothed <= 2 * lowest
    assert all(point.smoothed <= 2 * lowest for point in points[:-1])


def test_the_command_to_train_with_the_suggestion_works(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_train("task=lr_find", *base, "lr_find.steps=40", f"hydra.run.dir={tmp_path / 'range'}")
    command = capsys.readouterr().out.strip().splitlines()[-1].split()
    assert command[:2] == ["python", "train.py"] and command[-1].startswith("optimizer.lr=")
    assert not any(part.startswith(("task=", "lr_find.", "hydra.")) for part in command)
    nats = run_train(*command[2:], f"hydra.run.dir={tmp_path / 'run'}")
    assert nats is not None and math.isfinite(nats)


@given(
    rates=st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=3),
    steps=st.integers(1, 50),
    lowest=st.floats(1e-8, 1e-2),
    factor=st.floats(1.1, 1e6),
)
def test_learning_rates_grow_by_the_formula_and_keep_their_ratios(
    rates: list[float], steps: int, lowest: float, factor: float
) -> None:
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])
    scheduler = growing(optimizer, RangeOptions(lowest=lowest, highest=lowest * factor, steps=steps))
    for step in range(steps):
        expected = lowest * factor ** (step / max(1, steps - 1))
        found = [group["lr"] for group in optimizer.param_groups]
        assert found == pytest.approx([expected * rate / rates[0] for rate in rates])
        optimizer.step()
        scheduler.step()


def test_the_suggestion_lies_between_the_steepest_fall_and_a_tenth_of_the_lowest_point() -> None:
    rates = [10 ** (-6 + i / 20) for i in range(121)]  # 1e-6 to 1
    # A smooth fall around 1e-3, a minimum at 1e-1, then divergence.
    losses = [3 - torch.sigmoid(torch.tensor(6 * (math.log10(r) + 3))).item() for r in rates]
    losses = [loss + (3 * (math.log10(r) + 1) ** 2 if r > 0.1 else 0.0) for loss, r in zip(losses, rates, strict=True)]
    points = [Point(rate, loss, loss) for rate, loss in zip(rates, losses, strict=True)]
    found = suggest(points)
    assert found == pytest.approx(math.sqrt(1e-3 * 1e-2), rel=0.5)


@pytest.mark.parametrize("losses", [[], [3.0], [3.0] * 50, [3.0 + i for i in range(50)], [math.nan] * 5])
def test_there_is_no_suggestion_where_the_loss_does_not_fall(losses: list[float]) -> None:
    assert suggest([Point(10 ** (-6 + i / 10), loss, loss) for i, loss in enumerate(losses)]) is None


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(OptionError, match="highest=0.1 must be more than lr_find.lowest=0.1"):
        RangeOptions(lowest=0.1, highest=0.1)


def test_a_profile_has_a_table_and_a_trace(base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    result = charlm.profile(*base, "profile.steps=3", folder=tmp_path / "profile")
    assert torch.equal(torch.get_rng_state(), before)
    calls = {row.name: row.calls for row in result.rows}
    assert calls["run_training_batch"] == 3  # the phases of Lightning are in it
    assert calls["aten::embedding"] >= 3
    assert [row.seconds for row in result.rows] == sorted((row.seconds for row in result.rows), reverse=True)
    assert result.characters_per_second > 0
    events = json.loads((result.folder / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "run_training_batch" for event in events) == 3
    assert {path.name for path in result.folder.iterdir()} == {".hydra", "trace.json"}
    out = capsys.readouterr().out
    assert "aten::" in out and "characters/s" in out


@pytest.mark.parametrize("task", ["lr_find", "profile"])
def test_a_task_refuses_a_run_to_resume(task: str, tmp_path: Path) -> None:
    with pytest.raises(charlm.UsageError, match="task='?" + task + "'? looks at a new run: leave out resume"):
        charlm.train(f"task={task}", f"resume={tmp_path}")


def test_training_from_python_does_not_do_another_task(base: list[str], tmp_path: Path) -> None:
    with pytest.raises(charlm.UsageError, match="call charlm.lr_find"):
        charlm.train(*base, "task=lr_find", folder=tmp_path / "run")


def test_random_states_are_plain_and_restorable() -> None:
    state = random_state.collect()
    first = torch.rand(3)
    random_state.restore(state)
    assert torch.equal(torch.rand(3), first)
