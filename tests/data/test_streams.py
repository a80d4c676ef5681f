from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from charlm.data.batch import IGNORE, Batch
from charlm.data.mix import Mix
from charlm.data.streams import Streams, edges, epoch_rng, stack, stack_all
from charlm.data.windows import Windows, window_starts

few = settings(max_examples=120, deadline=None)


@dataclass(frozen=True)
class Cut:
    length: int
    rows: int
    bptt: int
    jitter: int
    seed: int

    @property
    def ids(self) -> Any:
        return torch.arange(self.length, dtype=torch.int16)  # an id equals its position

    def training(self, epoch: Any = 0) -> Any:
        return self.loader(stack, self.jitter, epoch)

    def evaluation(self) -> Any:
        return self.loader(stack_all, 0, 0)

    def loader(self, stacker: Any, jitter: int, epoch: Any) -> Any:
        x, y = stacker(self.ids, self.rows)
        return Streams(x, y, self.bptt, jitter=jitter, rng=lambda: epoch_rng(self.seed, epoch))


@st.composite
def cuts(draw: Any) -> Any:
    length = draw(st.integers(2, 300))
    rows = draw(st.integers(1, min(length - 1, 12)))
    bptt = draw(st.integers(1, 40))
    return Cut(length, rows, bptt, draw(st.integers(0, (bptt - 1) // 2)), draw(st.integers(0, 2**32 - 1)))


# Training streams.


@few
@given(cuts())
def test_each_row_continues_where_it_stopped(cut: Any) -> None:
    batches = list(cut.training())
    for before, after in zip(batches, batches[1:], strict=False):
        assert after.x[:, 0].tolist() == before.y[:, -1].tolist()


@few
@given(cuts())
def test_the_streams_are_equal_pieces_of_the_text_in_order(cut: Any) -> None:
    columns = (cut.length - 1) // cut.rows
    whole = torch.cat([batch.x for batch in cut.training()], dim=1).tolist()
    assert whole == [list(range(row * columns, (row + 1) * columns)) for row in range(cut.rows)]


@few
@given(cuts())
def test_every_target_is_used_once_but_for_less_than_a_row_at_the_end(cut: Any) -> None:
    used = Counter(target for batch in cut.training() for target in batch.y.flatten().tolist())
    left_out = (cut.length - 1) % cut.rows
    assert left_out <= cut.rows - 1
    assert used == Counter(range(1, cut.length - left_out))


@few
@given(cuts())
def test_y_is_x_shifted_by_one(cut: Any) -> None:
    for batch in cut.training():
        assert isinstance(batch, Batch)
        assert batch.x.shape == batch.y.shape
        assert batch.x.shape[0] == cut.rows
        assert batch.x.dtype == batch.y.dtype == torch.int64
        assert (batch.x + 1).tolist() == batch.y.tolist()


@few
@given(cuts())
def test_only_the_first_batch_is_first(cut: Any) -> None:
    firsts = [batch.first for batch in cut.training()]
    assert firsts == [True] + [False] * (len(firsts) - 1)


@few
@given(cuts())
def test_the_length_is_the_number_of_batches_and_jitter_does_not_change_it(cut: Any) -> None:
    columns = (cut.length - 1) // cut.rows
    windows = len(range(0, columns, cut.bptt))
    assert len(cut.training()) == len(list(cut.training())) == windows


@few
@given(cuts())
def test_without_jitter_all_windows_but_the_last_have_bptt_columns(cut: Any) -> None:
    x, y = stack(cut.ids, cut.rows)
    widths = [batch.x.shape[1] for batch in Streams(x, y, cut.bptt)]
    columns = (cut.length - 1) // cut.rows
    assert widths == [min(cut.bptt, columns - start) for start in range(0, columns, cut.bptt)]


@few
@given(cuts())
def test_jitter_moves_each_edge_by_at_most_its_value_and_leaves_no_window_empty(cut: Any) -> None:
    columns = (cut.length - 1) // cut.rows
    moved = edges(columns, cut.bptt, cut.jitter, torch.Generator().manual_seed(cut.seed))
    still = [*range(0, columns, cut.bptt), columns]
    assert moved[0] == 0 and moved[-1] == columns
    assert all(abs(a - b) <= cut.jitter for a, b in zip(moved, still, strict=True))
    assert all(a < b for a, b in zip(moved, moved[1:], strict=False))


@pytest.mark.parametrize("columns", range(9, 17))
def test_a_short_last_window_is_never_jittered_away(columns: Any) -> None:
    for seed in range(30):
        moved = edges(columns, 8, 3, torch.Generator().manual_seed(seed))
        assert len(moved) == 3
        assert 0 < moved[1] < columns == moved[2]


@pytest.mark.parametrize("jitter", [1, 3])
def test_jitter_moves_edges_both_ways_and_by_its_full_value(jitter: int) -> None:
    rng = torch.Generator().manual_seed(0)
    moves = {
        moved - still
        for _ in range(20)
        for moved, still in zip(edges(200, 8, jitter, rng)[1:-1], range(8, 200, 8), strict=True)
    }
    assert moves == set(range(-jitter, jitter + 1))


def widths(cut: Cut, epoch: int) -> list[int]:
    return [batch.x.shape[1] for batch in cut.training(epoch)]


@few
@given(st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_jitter_differs_between_epochs_and_seeds_and_repeats_for_the_same(seed: int, epoch: Any) -> None:
    cut = Cut(2000, 2, 8, 3, seed)
    assert widths(cut, epoch) == widths(cut, epoch)
    assert widths(cut, epoch) != widths(cut, epoch + 1)
    assert widths(cut, epoch) != widths(Cut(2000, 2, 8, 3, seed + 1), epoch)


def test_a_loader_can_be_iterated_again_and_gets_new_random_numbers_each_time() -> None:
    epochs = iter(range(3))
    x, y = stack(torch.arange(2000), 2)
    loader = Streams(x, y, 8, jitter=3, rng=lambda: epoch_rng(5, next(epochs)))
    seen = [[batch.x.shape[1] for batch in loader] for _ in range(3)]
    assert seen == [widths(Cut(2000, 2, 8, 3, 5), epoch) for epoch in range(3)]


def test_the_global_random_state_is_untouched() -> None:
    before = torch.get_rng_state()
    Cut(300, 3, 8, 3, 1).training()
    list(Cut(300, 3, 8, 3, 1).training())
    list(Windows(torch.arange(50), torch.arange(40), 4, 8, rng=lambda: epoch_rng(1, 2)))
    assert torch.equal(before, torch.get_rng_state())


def test_neighbouring_seeds_and_epochs_have_different_random_numbers() -> None:
    draws = [
        tuple(torch.randint(2**31, (4,), generator=epoch_rng(s, e)).tolist()) for s in range(30) for e in range(30)
    ]
    assert len(set(draws)) == 900


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_stack_makes_views_of_the_ids(dtype: Any) -> None:
    ids = torch.arange(101, dtype=dtype)
    x, y = stack(ids, 4)
    assert x.shape == y.shape == (4, 25)
    assert x.data_ptr() == ids.data_ptr()
    assert y.data_ptr() == ids.data_ptr() + ids.element_size()
    ids[0], ids[100] = 77, 88
    assert x[0, 0] == 77 and y[3, 24] == 88


def test_modifying_a_batch_does_not_modify_the_ids() -> None:
    cut = Cut(50, 2, 5, 0, 0)
    x, y = stack(cut.ids, 2)
    for batch in Streams(x, y, 5):
        batch.x.zero_()
    assert x[:, 0].tolist() == [0, 24]


def test_a_text_shorter_than_bptt_is_one_short_batch() -> None:
    assert edges(3, 8) == [0, 3]
    assert edges(3, 8, 2, torch.Generator()) == [0, 3]
    (batch,) = Streams(*stack(torch.arange(4), 1), 8)
    assert batch.x.tolist() == [[0, 1, 2]] and batch.y.tolist() == [[1, 2, 3]] and batch.first


# Evaluation streams.


@few
@given(cuts())
def test_evaluation_covers_every_target_once_and_in_order(cut: Any) -> None:
    y = torch.cat([batch.y for batch in cut.evaluation()], dim=1)
    flat = y.flatten().tolist()
    targets = list(range(1, cut.length))
    assert flat == targets + [IGNORE] * (len(flat) - len(targets))
    assert len(flat) - len(targets) < cut.rows


@few
@given(cuts())
def test_evaluation_targets_follow_their_inputs(cut: Any) -> None:
    for batch in cut.evaluation():
        real = batch.y != IGNORE
        assert (batch.x[real] + 1).tolist() == batch.y[real].tolist()
        assert batch.x.min() >= 0  # padding is a valid id


@few
@given(cuts())
def test_evaluation_rows_continue_and_only_the_first_batch_is_first(cut: Any) -> None:
    batches = list(cut.evaluation())
    assert len(cut.evaluation()) == len(batches)
    assert [batch.first for batch in batches] == [True] + [False] * (len(batches) - 1)
    for before, after in zip(batches, batches[1:], strict=False):
        real = after.y[:, 0] != IGNORE
        assert after.x[real, 0].tolist() == before.y[real, -1].tolist()


@few
@given(cuts())
def test_training_and_evaluation_agree_where_nothing_is_left_over(cut: Any) -> None:
    assume((cut.length - 1) % cut.rows == 0)
    for mine, theirs in zip(stack(cut.ids, cut.rows), stack_all(cut.ids, cut.rows), strict=True):
        assert mine.tolist() == theirs.tolist()


def test_cross_entropy_ignores_the_padding() -> None:
    logits = torch.randn(3, 5)
    with_padding = F.cross_entropy(logits, torch.tensor([1, 4, IGNORE]))
    assert with_padding == F.cross_entropy(logits[:2], torch.tensor([1, 4]))


# Windows.


@few
@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 25))
def test_window_starts_are_all_that_leave_a_target_after_the_window(ids: Any, length: int, stride: int) -> None:
    expected = [start for start in range(0, ids, stride) if start + length < ids]
    assert window_starts(ids, length, stride).tolist() == expected


@st.composite
def window_cuts(draw: Any) -> Any:
    length = draw(st.integers(1, 12))
    ids = draw(st.integers(length + 1, 80))
    return ids, length, draw(st.integers(1, 15)), draw(st.integers(1, 10)), draw(st.integers(0, 2**32 - 1))


@few
@given(window_cuts())
def test_windows_in_order_are_slices_of_the_text(cut: Any) -> None:
    ids, length, stride, rows, _ = cut
    text = [7 * i % 101 for i in range(ids)]
    starts = window_starts(ids, length, stride)
    loader = Windows(torch.tensor(text, dtype=torch.int16), starts, length, rows)
    batches = list(loader)
    got = [(x, y) for batch in batches for x, y in zip(batch.x.tolist(), batch.y.tolist(), strict=True)]
    assert got == [(text[s : s + length], text[s + 1 : s + length + 1]) for s in starts.tolist()]
    assert len(loader) == len(batches)
    assert all(batch.first is True for batch in batches)
    assert all(batch.x.dtype == batch.y.dtype == torch.int64 for batch in batches)
    sizes = [len(batch.x) for batch in batches]
    assert sizes[:-1] == [rows] * (len(sizes) - 1) and 1 <= sizes[-1] <= rows


def order(cut: Any, epoch: int) -> list[int]:
    ids, length, stride, rows, seed = cut
    starts = window_starts(ids, length, stride)
    loader = Windows(torch.arange(ids), starts, length, rows, rng=lambda: epoch_rng(seed, epoch))
    assert len(loader) == len(list(loader))
    assert all(batch.first is True for batch in loader)
    return [start for batch in loader for start in batch.x[:, 0].tolist()]


@few
@given(window_cuts(), st.integers(0, 50))
def test_a_shuffled_order_is_a_permutation_that_repeats_by_seed_and_epoch(cut: Any, epoch: Any) -> None:
    shuffled = order(cut, epoch)
    assert sorted(shuffled) == window_starts(*cut[:3]).tolist()
    assert shuffled == order(cut, epoch)


@few
@given(st.integers(0, 2**32 - 1), st.integers(0, 50))
def test_a_shuffled_order_differs_between_epochs_and_seeds(seed: int, epoch: Any) -> None:
    here = order((200, 4, 2, 8, seed), epoch)
    assert here != sorted(here)
    assert here != order((200, 4, 2, 8, seed), epoch + 1)
    assert here != order((200, 4, 2, 8, seed + 1), epoch)


def test_windows_share_memory_with_the_ids() -> None:
    ids = torch.arange(40, dtype=torch.int16)
    loader = Windows(ids, torch.tensor([0, 30]), 4, 2)
    ids[0], ids[34] = 500, 600
    (batch,) = loader
    assert batch.x[0].tolist() == [500, 1, 2, 3]
    assert batch.y[1].tolist() == [31, 32, 33, 600]


def test_windows_begin_at_the_given_starts() -> None:
    (batch,) = Windows(torch.arange(40), torch.tensor([30, 5, 5]), 2, 8)
    assert batch.x.tolist() == [[30, 31], [5, 6], [5, 6]]
    assert batch.y.tolist() == [[31, 32], [6, 7], [6, 7]]


def mixed(lengths: list[int], rows: list[int], bptt: int) -> tuple[list[Tensor], list[Streams]]:
    """Texts whose ids encode the text and the position, and their streams."""
    texts = [torch.arange(length) + 1000 * i for i, length in enumerate(lengths)]
    return texts, [Streams(*stack(ids, share), bptt) for ids, share in zip(texts, rows, strict=True)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(2, 60)), min_size=2, max_size=3),
    st.integers(1, 9),
    st.integers(1, 4),
)
def test_a_mixed_batch_has_the_ratio_and_every_stream_is_unbroken(
    sources: list[tuple[int, int]], bptt: int, epochs: int
) -> None:
    rows = [share for share, _ in sources]
    texts, streams = mixed([share * columns + 1 for share, columns in sources], rows, bptt)
    now = [0]
    loader = Mix(streams, lambda: now[0] * len(streams[0]))
    read: list[list[list[tuple[int, int]]]] = [[[] for _ in range(share)] for share in rows]
    for now[0] in range(epochs):
        batches = list(loader)
        assert len(batches) == len(loader) == len(streams[0])
        assert bool(batches[0].first[: rows[0]].all())  # the first text starts again in each epoch
        for batch in batches:
            assert batch.x.shape == batch.y.shape == (sum(rows), batch.x.shape[1])
            assert batch.padded == (batch.y == IGNORE).sum()
            begin = 0
            for source, share in enumerate(rows):
                part = slice(begin, begin + share)
                begin += share
                real = batch.y[part] != IGNORE
                assert ((batch.x[part] // 1000 == source) | ~real).all()  # exactly its share of the rows
                assert len(set(batch.first[part].tolist())) == 1
                for row in range(share):
                    if batch.first[part][row]:
                        read[source][row].append([])
                    pairs = zip(batch.x[part][row].tolist(), batch.y[part][row].tolist(), strict=True)
                    read[source][row][-1].extend(p for p in pairs if p[1] != IGNORE)
    for source, share in enumerate(rows):
        x, y = stack(texts[source], share)
        for row in range(share):
            whole = list(zip(x[row].tolist(), y[row].tolist(), strict=True))
            *passes, last = read[source][row]
            assert all(one == whole for one in passes)  # each pass is the whole stream, in order, without a gap
            assert last == whole[: len(last)]
    for row in range(rows[0]):
        assert len(read[0][row]) == epochs


def test_only_the_last_window_of_a_text_is_padded() -> None:
    _, streams = mixed([2 * 10 + 1, 1 * 7 + 1], [2, 1], 4)
    shapes = [(batch.x.shape[1], batch.padded, batch.first.tolist()) for batch in Mix(streams, lambda: 0)]
    # Batches of 4, 4 and 2 columns of the first text, next to 4, 3 and 4 columns of the second.
    assert shapes == [(4, 0, [True, True, True]), (4, 1, [False, False, False]), (4, 4, [False, False, True])]
