"""Several processes train like one: the same losses and weights, for every way to cut a text into batches."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charlm.data.batch import IGNORE, Batch
from charlm.data.shares import Share, share
from charlm.models.state import map_state
from charlm.training.resuming import join
from tests.helpers import ROOT
from tests.training.ranks import KINDS, Result, train


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """What several real processes found for every kind."""
    out = tmp_path_factory.mktemp("ranks") / "found.pt"
    command = [sys.executable, "-m", "tests.training.ranks", str(out), str(request.param)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300, stderr=subprocess.DEVNULL)
    found: dict[str, Result] = torch.load(out, weights_only=True)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_several_processes_train_like_one(kind: str, together: dict[str, Result], tmp_path: Path) -> None:
    one, several = train(kind, tmp_path), together[kind]
    assert several["count"] == one["count"]
    assert several["losses"] == pytest.approx(one["losses"], abs=1e-6)
    assert several["weights"].keys() == one["weights"].keys()
    for name, weight in one["weights"].items():
        assert (several["weights"][name].double() - weight.double()).abs().max() < 1e-5, name


@given(st.integers(0, 70), st.integers(1, 9))
def test_the_shares_of_all_ranks_are_the_rows(rows: int, world: int) -> None:
    parts = [list(range(rows))[share(rows, rank, world)] for rank in range(world)]
    assert sum(parts, []) == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


class Batches:
    """One batch, however often it is read."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Batch]:
        yield self.batch


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 5), st.data())
def test_weighted_means_of_the_ranks_average_to_the_mean(rows: int, world: int, length: int, data: Any) -> None:
    """By targets and by rows, whatever is padded and however few the rows are."""
    values = torch.arange(rows * length, dtype=torch.float64).view(rows, length) ** 2
    padding = torch.zeros(rows, length, dtype=torch.bool)
    for row in range(rows):  # at the end of a row, as in a mix
        padding[row, length - data.draw(st.integers(0, length - 1)) :] = length > 1
    padding[:, 0] = False
    y = torch.arange(rows * length).view(rows, length).masked_fill(padding, IGNORE)
    whole: Any = Batches(Batch(y, y, torch.arange(rows) % 2 == 0, int(padding.sum())))
    parts = [next(iter(Share(whole, rank, world))) for rank in range(world)]

    def terms(batch: Batch) -> torch.Tensor:
        return values.flatten()[batch.y[batch.y != IGNORE]]

    by_target = sum(part.weights[0] * terms(part).mean() for part in parts) / world
    by_row = sum(part.weights[1] * terms(part).sum() / len(part.y) for part in parts) / world
    assert by_target.item() == pytest.approx(values[~padding].mean().item())
    assert by_row.item() == pytest.approx(values[~padding].sum().item() / rows)
    counted = [part for part in parts if any(part.weights)]
    assert torch.equal(torch.cat([part.first for part in counted]), whole.batch.first)
    assert all(part.padded == int((part.y == IGNORE).sum()) for part in parts)
    evaluated = [next(iter(Share(whole, rank, world, evaluation=True))) for rank in range(world)]
    assert sorted(i for part in evaluated for i in part.y[part.y != IGNORE].tolist()) == sorted(y[~padding].tolist())


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 5))
def test_a_state_is_cut_again_for_another_number_of_processes(rows: int, before: int, after: int) -> None:
    whole = (torch.arange(rows * 2.0).view(rows, 2), (torch.arange(rows),))
    for world in (before, after):
        cuts = [share(rows, rank, world) for rank in range(world)]
        joined: Any = join([map_state(itemgetter(cut), whole) for cut in cuts])
        assert torch.equal(joined[0], whole[0]) and torch.equal(joined[1][0], whole[1][0])
