from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm.data.batch import IGNORE
from charlm.data.module import CharDataModule
from charlm.data.options import DataOptions
from charlm.data.splits import split_sizes
from charlm.errors import OptionError, UsageError
from charlm.text.corpus import Corpus
from tests.helpers import data_module

LINE = "".join(chr(0x4E00 + i) for i in range(1000))  # distinct and sorted, so that an id equals its position


def corpus(text: str, *notices: str) -> Corpus:
    return Corpus(text, "made up", "0" * 64, notices)


def module(text: str = LINE, **options: Any) -> CharDataModule:
    return data_module(text, **{"bptt": 5} | options)


def data_options(**options: Any) -> DataOptions:
    return DataOptions(name="made up", corpus={}, **options)


def at_epoch(data: CharDataModule, epoch: int) -> CharDataModule:
    data.trainer = SimpleNamespace(current_epoch=epoch, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    return data


def positions(loader: Any) -> list[int]:
    """Every position that occurs in a loader's inputs or targets."""
    return sorted({i for batch in loader for part in (batch.x, batch.y) for i in part.flatten().tolist()} - {IGNORE})


def windows(loader: Any) -> list[tuple[int, ...]]:
    assert all((batch.y == batch.x + 1).all() for batch in loader)
    return [tuple(row) for batch in loader for row in batch.x.tolist()]


# Splits.


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, (900, 100, 0)),
        ({"val": 0.25}, (750, 250, 0)),
        ({"val": 0.2, "test": 0.1}, (700, 200, 100)),
        ({"val": 150, "test": 0.05}, (800, 150, 50)),
        ({"val": 123, "test": 45}, (832, 123, 45)),
        ({"val": 0}, (1000, 0, 0)),
        ({"val": 0.0}, (1000, 0, 0)),
        ({"train": 0.5, "val": 0.1}, (500, 100, 0)),
        ({"train": 300, "val": 20, "test": 10}, (300, 20, 10)),
        ({"train": 900, "val": 100}, (900, 100, 0)),
    ],
)
def test_splits_are_fractions_or_counts(options: Any, sizes: Any) -> None:
    data = module(**options)
    assert tuple(data.sizes[name] for name in ("train", "val", "test")) == sizes


def test_splits_lie_in_the_order_train_val_test_and_do_not_overlap() -> None:
    data = module(train=300, val=200, test=100, batch_size=1)
    assert positions(data.train_dataloader()) == list(range(300))
    assert positions(data.val_dataloader()) == list(range(300, 500))
    assert positions(data.test_dataloader()) == list(range(500, 600))


def test_the_rest_of_the_text_belongs_to_training() -> None:
    data = module(val=200, test=100, batch_size=1)
    assert positions(data.train_dataloader()) == list(range(700))
    assert positions(data.val_dataloader()) == list(range(700, 900))
    assert positions(data.test_dataloader()) == list(range(900, 1000))


def test_an_empty_split_has_no_batches() -> None:
    data = module(val=0, test=0)
    assert list(data.val_dataloader()) == [] and list(data.test_dataloader()) == []
    assert (data.rows["val"], data.rows["test"]) == (0, 0)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(10, 100_000), st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.7, 0.2, 0.1), (0.9, 0.1, 0.0)])
)
def test_fractions_that_sum_to_one_fit_any_text(total: Any, fractions: Any) -> None:
    train, val, test = fractions
    sizes = split_sizes(total, data_options(train=train, val=val, test=test))
    assert sum(sizes.values()) <= total
    for size, fraction in zip(sizes.values(), fractions, strict=True):
        assert abs(size - fraction * total) <= 1


def test_fractions_that_sum_to_one_fit_a_text_where_halves_round_up() -> None:
    assert sum(split_sizes(15, data_options(train=0.8, val=0.1, test=0.1)).values()) <= 15


@pytest.mark.parametrize(
    "options",
    [
        {"val": 1001},
        {"val": 1000},
        {"val": 0.6, "test": 0.4},
        {"val": 600, "test": 500},
        {"train": 901, "val": 100},
        {"train": 0.95, "val": 0.1},
        {"train": 2000, "val": 0},
    ],
)
def test_splits_that_do_not_fit_are_refused_with_their_sizes(options: Any) -> None:
    with pytest.raises(UsageError, match=r"data\.val [\d,]+ \+ data\.test [\d,]+ do not fit into the 1,000 characters"):
        module(**options)


@pytest.mark.parametrize("train", [0, 0.0, 0.0001])
@pytest.mark.parametrize("mode", ["streams", "windows"])
def test_an_empty_training_split_is_refused(train: Any, mode: Any) -> None:
    with pytest.raises(UsageError, match=r"data\.train"):
        module(train=train, mode=mode)


# Vocabulary.


def test_the_vocabulary_is_that_of_the_whole_text_by_default() -> None:
    text = "ab" * 50 + "xy" * 5
    assert module(text, val=10).vocab.chars == "abxy"
    assert module(text, val=10, vocab_from="train", unk=True).vocab.chars == "ab"


def test_the_vocabulary_of_the_training_split_does_not_count_later_splits() -> None:
    text = "aab" * 30 + "b" * 10
    assert module(text, val=10, vocab_from="train", min_freq=31, unk=True).vocab.chars == "a"
    assert module(text, val=10, min_freq=31, unk=True).vocab.chars == "ab"


def test_unseen_validation_characters_become_unk() -> None:
    data = module("ab" * 50 + "ax" * 5, val=10, vocab_from="train", pad=True, unk=True)
    assert data.pieces["val"].tolist() == [2, 1] * 5
    assert data.vocab.decode(next(iter(data.val_dataloader())).x[0].numpy()) == "a\ufffda\ufffda"


@pytest.mark.parametrize("options", [{"vocab_from": "train"}, {"min_freq": 6}])
def test_characters_outside_the_vocabulary_are_refused_without_unk_and_the_remedy_is_named(options: Any) -> None:
    with pytest.raises(UsageError) as caught:
        module("ab" * 50 + "aé" * 5, val=10, **options)
    message = str(caught.value)
    assert "U+00E9" in message and "data.unk=true" in message
    assert "data.vocab_from=all" in message and "data.min_freq=1" in message


def test_a_min_freq_that_nothing_reaches_is_refused() -> None:
    with pytest.raises(UsageError, match=r"data\.min_freq"):
        module("ab" * 50, min_freq=51, unk=True)


def test_special_symbols_are_passed_on() -> None:
    data = module(pad=True, unk=True)
    assert (data.vocab.pad, data.vocab.unk, data.vocab.offset) == (True, True, 2)
    assert data.ids_N[0] == 2


# Lower case.


def test_lowercase_applies_to_vocabulary_and_text() -> None:
    data = module("AbCa" * 30, lowercase=True)
    assert data.vocab.chars == "abc"
    assert data.vocab.decode(data.ids_N.numpy()) == "abca" * 30
    assert data.normalisation["lowercase"] is True
    assert module("AbCa" * 30).vocab.chars == "ACab"


def test_sizes_are_counted_after_lowercasing() -> None:
    text = "İstanbul " * 20
    lowered = text.lower()
    assert len(lowered) == len(text) + 20
    data = module(text, lowercase=True, val=30, test=20, batch_size=1)
    assert sum(data.sizes.values()) == len(lowered) == len(data.ids_N)
    assert data.vocab.decode(data.pieces["train"].numpy()) == lowered[:-50]
    assert data.vocab.decode(data.pieces["val"].numpy()) == lowered[-50:-20]
    assert data.vocab.decode(torch.cat([b.y for b in data.test_dataloader()], dim=1)[0]) == lowered[-19:]


# Streams.


def test_streams_have_batch_size_rows_and_bptt_columns() -> None:
    data = module(val=200)
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == batch.y.shape == (4, 5)
    assert batch.first
    assert len(data.train_dataloader()) == 40  # 799 targets in 4 rows of 199


def test_validation_counts_every_target_even_where_rows_are_uneven() -> None:
    data = module(val=202)
    targets = [t for batch in data.val_dataloader() for t in batch.y.flatten().tolist() if t != IGNORE]
    assert sorted(targets) == list(range(799, 1000))


def test_training_drops_less_than_a_row_and_never_pads() -> None:
    data = module(val=200)
    targets = [t for batch in data.train_dataloader() for t in batch.y.flatten().tolist()]
    assert sorted(targets) == list(range(1, 797))


def test_jitter_is_for_training_only_and_changes_by_epoch() -> Any:
    data = module(bptt_jitter=2, val=200, test=100)

    def widths(loader: Any) -> Any:
        return [batch.x.shape[1] for batch in loader]

    seen = {epoch: widths(at_epoch(data, epoch).train_dataloader()) for epoch in (0, 1)}
    assert seen[0] != seen[1]
    assert seen[0] == widths(at_epoch(module(bptt_jitter=2, val=200, test=100), 0).train_dataloader())
    assert set(widths(data.val_dataloader())) == set(widths(data.test_dataloader())) == {5}


def test_jitter_depends_on_the_seed() -> None:
    first, other = (module(bptt_jitter=2, seed=seed).train_dataloader() for seed in (1, 2))
    assert [b.x.shape for b in first] != [b.x.shape for b in other]


def test_a_loader_uses_the_epoch_in_which_it_is_iterated() -> None:
    data = at_epoch(module(bptt_jitter=2), 0)
    loader = data.train_dataloader()
    first = [b.x.shape for b in loader]
    assert first == [b.x.shape for b in loader]
    at_epoch(data, 1)
    assert first != [b.x.shape for b in loader]


@pytest.mark.parametrize(("characters", "rows"), [(6, 1), (10, 1), (11, 2), (20, 3), (21, 4), (22, 4)])
def test_the_batch_shrinks_with_a_notice_on_tiny_texts(characters: Any, rows: int) -> None:
    data = module(LINE[:characters], val=0)
    assert data.rows["train"] == rows
    assert next(iter(data.train_dataloader())).x.shape == (rows, 5)
    if rows == 4:
        assert data.notices == []
    else:
        (notice,) = data.notices
        for part in (
            "train split",
            f"{characters} characters",
            f"its batch size is {rows}",
            "data.batch_size=4",
            "data.bptt=5",
        ):
            assert part in notice


def test_each_split_shrinks_on_its_own_after_the_notices_of_the_corpus() -> None:
    given = corpus(LINE, "a file was left out")
    data = data_module(given, bptt=5, val=12, test=7)
    assert data.rows == {"train": 4, "val": 2, "test": 1}
    assert data.notices[0] == "a file was left out"
    assert ["val split" in data.notices[1], "test split" in data.notices[2], len(data.notices)] == [True, True, 3]
    assert given.notices == ("a file was left out",)


@pytest.mark.parametrize("characters", [2, 3, 5])
def test_a_text_shorter_than_bptt_is_one_short_batch(characters: Any) -> None:
    data = module(LINE[:characters], val=0)
    (batch,) = data.train_dataloader()
    assert batch.x.tolist() == [list(range(characters - 1))]
    assert batch.y.tolist() == [list(range(1, characters))]
    assert "its batch size is 1" in data.notices[0]


def test_a_validation_split_shorter_than_bptt_is_one_short_batch() -> None:
    (batch,) = module(val=3).val_dataloader()
    assert batch.x.tolist() == [[997, 998]] and batch.y.tolist() == [[998, 999]]


@pytest.mark.parametrize(("options", "split"), [({"val": 1}, "val"), ({"test": 1}, "test"), ({"train": 1}, "train")])
def test_a_split_of_one_character_is_refused_by_name(options: Any, split: Any) -> None:
    with pytest.raises(UsageError, match=f"the {split} split has 1 character"):
        module(**options)


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_without_anything_to_predict_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        module(text)


# Windows.


@pytest.mark.parametrize("stride", [1, 3, 5, 8])
def test_no_window_crosses_a_split(stride: int) -> None:
    data = module(mode="windows", stride=stride, val=203, test=102)
    for loader, low, high in (
        (data.train_dataloader(), 0, 695),
        (data.val_dataloader(), 695, 898),
        (data.test_dataloader(), 898, 1000),
    ):
        expected = [tuple(range(s, s + 5)) for s in range(low, high, stride) if s + 5 < high]
        assert sorted(windows(loader)) == expected


def test_there_are_no_windows_in_the_unused_rest() -> None:
    data = module(mode="windows", train=100, val=50)
    assert max(positions(data.train_dataloader())) == 99
    assert positions(data.val_dataloader()) == list(range(100, 150))


def test_training_windows_are_shuffled_by_epoch_and_the_others_are_in_order() -> None:
    data = module(mode="windows", val=200, test=100)
    first, second = (windows(at_epoch(data, epoch).train_dataloader()) for epoch in (0, 1))
    assert first != second != sorted(second)
    assert sorted(first) == sorted(second)
    again = at_epoch(module(mode="windows", val=200, test=100), 0)
    assert first == windows(again.train_dataloader())
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert windows(loader) == sorted(windows(loader))


def test_windows_keep_the_order_of_the_text_without_shuffle() -> None:
    data = module(mode="windows", bptt=5, stride=3, shuffle=False)
    for _ in range(2):
        rows = torch.cat([batch.x for batch in data.train_dataloader()])
        expected = data.pieces["train"].long().unfold(0, 6, 3)[:, :5]  # each window has a target after its end
        assert torch.equal(rows, expected)


def test_window_batches_are_all_first_and_only_the_last_is_smaller() -> None:
    batches = list(module(mode="windows", val=0, batch_size=64).train_dataloader())
    assert all(batch.first for batch in batches)
    assert [len(batch.x) for batch in batches] == [64] * 15 + [35]


def test_the_windows_of_an_empty_split_are_none() -> None:
    data = module(mode="windows", val=0)
    assert list(data.val_dataloader()) == []


@pytest.mark.parametrize(("options", "split"), [({"val": 5}, "val"), ({"test": 5}, "test"), ({"train": 5}, "train")])
def test_a_split_too_short_for_one_window_is_refused_by_name(options: Any, split: Any) -> None:
    with pytest.raises(UsageError, match=rf"the {split} split is too short .*data\.bptt"):
        module(mode="windows", **options)


@pytest.mark.parametrize("stride", [1, 4])
def test_a_random_split_assigns_all_windows(stride: int) -> None:
    data = module(mode="windows", split="random", stride=stride, val=0.2, test=0.1)
    every = [tuple(range(s, s + 5)) for s in range(0, 995, stride)]
    parts = [windows(loader) for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]
    assert sorted(sum(parts, [])) == every
    assert [len(part) for part in parts] == [data.sizes[name] for name in ("train", "val", "test")]
    assert abs(data.sizes["val"] - 0.2 * len(every)) < 1 and abs(data.sizes["test"] - 0.1 * len(every)) < 1
    assert parts[1] != every[-len(parts[1]) :] and sorted(parts[1])[0] < every[len(every) // 2]


def test_a_random_split_can_be_counted_in_windows() -> None:
    data = module(mode="windows", split="random", train=500, val=300)
    assert (len(windows(data.train_dataloader())), len(windows(data.val_dataloader()))) == (500, 300)
    assert set(windows(data.train_dataloader())).isdisjoint(windows(data.val_dataloader()))


def test_a_random_split_depends_on_the_seed_alone() -> Any:
    def val(seed: int) -> Any:
        torch.rand(1)  # the global random state must not matter
        return windows(module(mode="windows", split="random", seed=seed).val_dataloader())

    assert val(1) == val(1) != val(2)


def test_a_random_split_that_is_too_large_is_reported_in_windows() -> None:
    with pytest.raises(UsageError, match="do not fit into the 995 windows"):
        module(mode="windows", split="random", val=995)


# Memory.


def test_ids_are_held_once_as_int16_and_batches_are_int64() -> None:
    data = module(val=100)
    assert data.ids_N.dtype == torch.int16
    home = data.ids_N.untyped_storage().data_ptr()
    assert all(piece.untyped_storage().data_ptr() == home for piece in data.pieces.values())
    loader = data.train_dataloader()
    assert loader.x_BL.untyped_storage().data_ptr() == loader.y_BL.untyped_storage().data_ptr() == home
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batch = next(iter(loader))
        assert batch.x.dtype == batch.y.dtype == torch.int64


def test_windows_hold_the_ids_once() -> None:
    data = module(mode="windows")
    loader = data.train_dataloader()
    assert loader.rows.untyped_storage().data_ptr() == data.ids_N.untyped_storage().data_ptr()
    assert next(iter(loader)).x.dtype == torch.int64


@pytest.mark.parametrize(("characters", "most"), [(2**15 - 1, torch.int16), (2**15 + 1, torch.int32)])
def test_large_vocabularies_do_not_overflow(characters: Any, most: Any) -> None:
    text = "".join(chr(0x10000 + i) for i in range(characters))
    data = module(text, val=0.1)
    assert data.ids_N.dtype == most
    assert data.ids_N.tolist() == list(range(characters))
    assert positions(data.val_dataloader())[-1] == characters - 1


def test_a_batch_is_not_moved() -> None:
    data = module()
    batch = next(iter(data.train_dataloader()))
    assert data.transfer_batch_to_device(batch, torch.device("cpu"), 0) is batch


# Bad options.

NUMBERS = ["batch_size", "bptt", "stride", "min_freq"]
BAD = (
    [(field, value) for field in NUMBERS for value in (0, -1, 2.0, 2.5, "8", None, True, [8])]
    + [("bptt_jitter", value) for value in (-1, 1.0, "1", None, True)]
    + [(field, value) for field in ("val", "test") for value in (-1, -0.1, 1.0, 1.5, "0.1", None, True, False, [0.1])]
    + [("train", value) for value in (-1, -0.1, 1.0, 1.5, "0.8", True, False)]
    + [(field, float(value)) for field in ("train", "val", "test") for value in ("nan", "inf", "-inf")]
    + [(field, value) for field in ("mode", "split", "vocab_from") for value in ("other", "", None, 1, True, ["all"])]
    + [(field, value) for field in ("lowercase", "pad", "unk", "shuffle") for value in ("no", "false", None, 2, [])]
)


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_option_is_refused_by_name_and_value(field: Any, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(str(OptionError(f'data.{field}', 'must be', value)))} "):
        module(**{field: value})


@pytest.mark.parametrize(("bptt", "jitter"), [(5, 3), (6, 3), (1, 1), (8, 4), (8, 100)])
def test_a_jitter_of_half_a_window_or_more_is_refused(bptt: int, jitter: int) -> None:
    with pytest.raises(UsageError, match=rf"data\.bptt_jitter={jitter} .*data\.bptt={bptt}"):
        module(bptt=bptt, bptt_jitter=jitter)


@pytest.mark.parametrize(("bptt", "jitter"), [(5, 2), (3, 1), (8, 3), (1, 0)])
def test_a_jitter_just_below_half_a_window_works(bptt: int, jitter: int) -> None:
    assert positions(module(bptt=bptt, bptt_jitter=jitter, val=0, batch_size=1).train_dataloader()) == list(range(1000))


def test_jitter_is_refused_for_windows() -> None:
    with pytest.raises(UsageError, match=r"data\.bptt_jitter .*data\.mode=streams"):
        module(mode="windows", bptt_jitter=1)


def test_a_random_split_is_refused_for_streams() -> None:
    with pytest.raises(UsageError, match=r"data\.split='random' needs data\.mode=windows"):
        module(split="random")


@pytest.mark.parametrize(
    ("options", "leaky"),
    [
        ({"split": "random", "stride": 3}, True),
        ({"split": "random", "stride": 5}, False),
        ({"split": "random", "stride": 3, "val": 0.0}, False),
        ({"split": "contiguous", "stride": 3}, False),
    ],
)
def test_a_random_split_of_overlapping_windows_is_reported_as_leaky(options: Any, leaky: Any) -> None:
    data = module(mode="windows", bptt=5, **options)
    assert data.leaky == leaky
    assert any("leaky" in notice for notice in data.notices) == leaky
