"""Batch size, bptt and epochs by the size of the text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.data.options import DataOptions
from charlm.data.sizes import LADDER, LEAST_STEPS, choose_epochs, choose_sizes, rung
from charlm.errors import OptionError
from tests.helpers import data_module

AUTO: dict[str, Any] = {"batch_size": "auto", "bptt": "auto"}


def options(**values: Any) -> DataOptions:
    return DataOptions(**{"name": "made up", "corpus": {}, "path": "a.txt"} | AUTO | values)


@pytest.mark.parametrize(
    ("characters", "expected"),
    [(2_700, (4, 32, 20)), (10_000, (4, 32, 20)), (10_001, (8, 32, 12)), (270_000, (16, 64, 12))]
    + [(2_700_000, (32, 64, 6)), (20_000_000, (64, 64, 3))],
)
def test_the_rule(characters: int, expected: tuple[int, int, int]) -> None:
    assert rung(characters) == expected


def test_the_docstring_states_the_rule() -> None:
    stated = " ".join((rung.__doc__ or "").split())
    for _, rows, bptt, epochs in LADDER:
        assert f"batch size {rows}, bptt {bptt}, {epochs} epochs" in stated


@given(st.integers(1, 20_000_000))
def test_the_chosen_batch_fits_the_text(characters: int) -> None:
    chosen = choose_sizes(options(), characters)
    assert isinstance(chosen.batch_size, int) and isinstance(chosen.bptt, int)
    assert chosen.batch_size == 1 or chosen.batch_size * chosen.bptt < characters


@given(st.integers(1, 20_000_000), st.integers(1, 5_000))
def test_a_run_has_some_hundred_steps_however_short_the_text(characters: int, steps: int) -> None:
    epochs = choose_epochs(options(), characters, steps)
    assert epochs * steps >= LEAST_STEPS and epochs >= rung(characters)[2]
    assert epochs == rung(characters)[2] or (epochs - 1) * steps < LEAST_STEPS


def test_other_corpora_keep_nine_epochs() -> None:
    assert choose_epochs(options(path=""), 3_000, 1) == 9


def test_each_is_overridable_alone() -> None:
    assert choose_sizes(options(batch_size=7), 3_000).batch_size == 7
    assert choose_sizes(options(batch_size=7), 3_000).bptt == 32
    assert choose_sizes(options(bptt=100), 3_000).model_dump(include={"bptt", "batch_size"}) == {
        "bptt": 100,
        "batch_size": 4,
    }
    fixed = options(batch_size=64, bptt=64)
    assert choose_sizes(fixed, 3_000) is fixed


def test_a_mix_keeps_its_ratio() -> None:
    assert choose_sizes(options(path="", paths=["a", "b"], ratio=[2, 1]), 3_000).batch_size == 6


def test_what_depends_on_bptt_is_checked_once_it_is_chosen() -> None:
    with pytest.raises(OptionError, match=r"^bptt_jitter=16 must be less than half of data\.bptt=32"):
        choose_sizes(options(bptt_jitter=16), 3_000)


@pytest.mark.parametrize("name", ["batch_size", "bptt"])
@pytest.mark.parametrize("value", ["Auto", "8", 0, 1.5, True, None])
def test_anything_but_auto_or_a_number_is_refused(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=rf"^{name}=.* must be (an integer|at least 1), or 'auto'$"):
        options(**{name: value})


@pytest.mark.parametrize("length", [30, 200, 2_000, 20_000])
def test_the_data_module_chooses_without_a_notice(length: int) -> None:
    data = data_module("ab " * (length // 3), path="a.txt", **AUTO)
    assert data.notices == [] and data.chosen == {"batch_size", "bptt"}
    assert (data.batch_size, data.bptt) == (data.options.batch_size, data.options.bptt)
    assert data.options == choose_sizes(data.options, data.characters)
    assert len(list(data.train_dataloader())) >= 1
