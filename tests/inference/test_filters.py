"""The filters of decoding against their definitions, character by character in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from charlm.errors import UsageError
from charlm.inference.decoding import FILTERS, Chooser, Decoding, filters

NONE = np.empty((1, 0), np.int64)
rows = st.lists(
    st.sampled_from([-math.inf, -30.0, -2.0, -1.0, 0.0, 0.5, 1.0, 3.0, 700.0]) | st.floats(-20, 20),
    min_size=1,
    max_size=12,
).filter(lambda row: max(row) > -math.inf)
shares = st.sampled_from([1e-9, 0.25, 0.5, 0.75, 0.999999, 1.0]) | st.floats(0.01, 1)


def filtered(logits: np.ndarray, options: Decoding, recent: np.ndarray) -> np.ndarray:
    for function in filters(options):
        logits = function(logits, options, recent)
    return logits


def choose(logits: np.ndarray, options: Decoding, uniforms: np.ndarray, recent: np.ndarray) -> np.ndarray:
    return Chooser(options)(logits, uniforms, recent)


def softmax(row: list[float]) -> list[float]:
    weights = [math.exp(logit - max(row)) for logit in row]
    return [weight / math.fsum(weights) for weight in weights]


def kept(row: list[float], **options: object) -> set[int]:
    """The ids that the filters leave, whose logits they must not change."""
    found = filtered(np.array([row]), Decoding(temperature=1.0, **options), NONE)[0]
    ids = {i for i in range(len(row)) if found[i] > -math.inf}
    assert all(found[i] == pytest.approx(row[i] - max(row)) for i in ids)
    return ids


def first_with_mass(order: list[int], p: list[float], mass: float) -> tuple[set[int], set[int]]:
    """The shortest beginning of `order` with this mass: at least these ids, at most those, where rounding decides."""
    slack = 1e-12
    least = next(
        (n for n in range(1, len(order) + 1) if math.fsum(p[i] for i in order[:n]) >= mass - slack), len(order)
    )
    most = next((n for n in range(1, len(order) + 1) if math.fsum(p[i] for i in order[:n]) >= mass + slack), len(order))
    return set(order[:least]), set(order[:most])


@given(rows, st.integers(1, 15))
def test_top_k_keeps_the_k_largest_and_of_equals_the_first(row: list[float], k: int) -> None:
    shifted = [logit - max(row) for logit in row]  # which makes very near logits equal
    order = sorted(range(len(row)), key=lambda i: (-shifted[i], i))[:k]
    assert kept(row, top_k=k) == {i for i in order if row[i] > -math.inf}


@given(rows, shares)
@example([0.0, 0.0, 0.0, 0.0], 0.5)
def test_top_p_keeps_the_fewest_most_likely_with_the_mass(row: list[float], mass: float) -> None:
    p = softmax(row)
    order = sorted((i for i in range(len(row)) if row[i] > -math.inf), key=lambda i: (-(row[i] - max(row)), i))
    least, most = first_with_mass(order, p, mass) if mass < 1 else (set(order), set(order))
    assert least <= kept(row, top_p=mass) <= most


@given(rows, shares)
@example([0.0, math.log(0.25)], 0.25)
def test_min_p_keeps_what_has_the_share_of_the_most_likely(row: list[float], share: float) -> None:
    found = kept(row, min_p=share)
    for i, logit in enumerate(row):
        ratio = math.exp(logit - max(row))
        if abs(ratio - share) > 1e-12:
            assert (i in found) == (ratio > share)


@given(rows, shares)
def test_typical_p_keeps_what_is_nearest_to_the_entropy(row: list[float], mass: float) -> None:
    p = softmax(row)
    entropy = -math.fsum(q * math.log(q) for q in p if q > 0)
    surprise = [-(logit - max(row)) + math.log(math.fsum(math.exp(x - max(row)) for x in row)) for logit in row]
    distance = [abs(s - entropy) for s in surprise]
    found = kept(row, typical_p=mass)
    assert found
    outside = [i for i in range(len(row)) if row[i] > -math.inf and i not in found]
    if outside:  # nothing inside is farther than what is outside, and the mass is the smallest that is enough
        assert max(distance[i] for i in found) <= min(distance[i] for i in outside) + 1e-9
        assert math.fsum(p[i] for i in found) >= mass - 1e-9
    farthest = max(found, key=lambda i: distance[i])
    assert math.fsum(p[i] for i in found if i != farthest) < mass + 1e-9 or len(found) == 1


@given(rows, st.floats(0.05, 20))
def test_the_temperature_divides_the_logits(row: list[float], temperature: float) -> None:
    found = softmax(filtered(np.array([row]), Decoding(temperature=temperature), NONE)[0].tolist())
    assert found == pytest.approx(softmax([logit / temperature for logit in row]), rel=1e-9, abs=1e-15)


@given(rows, st.fixed_dictionaries({}, optional={"top_k": st.integers(1, 9), "top_p": shares, "min_p": shares}), shares)
def test_all_filters_together_leave_something_and_only_that_is_drawn(
    row: list[float], options: dict[str, object], u: float
) -> None:
    decoding = Decoding(temperature=0.7, typical_p=0.9, **options)
    left = filtered(np.array([row]), decoding, NONE)[0]
    assert (left > -math.inf).any()
    for uniform in (0.0, u * (1 - 2**-53), 1 - 2**-53):
        assert left[choose(np.array([row]), decoding, np.array([uniform]), NONE)[0]] > -math.inf


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}])
def test_the_smallest_random_number_chooses_no_impossible_character(rows: int, options: dict[str, object]) -> None:
    logits = np.tile([-math.inf, -math.inf, 1.0, 2.0], (rows, 1))
    assert choose(logits, Decoding(**options), np.zeros(rows), np.empty((rows, 0), np.int64)).tolist() == [2] * rows


def test_filters_run_one_after_the_other() -> None:
    """Of 0.4, 0.3, 0.2, 0.1, top-k 3 leaves 0.44, 0.33, 0.22, of which the first two have the mass 0.75."""
    row = [math.log(p) for p in (0.2, 0.4, 0.1, 0.3)]
    assert kept(row, top_k=3, top_p=0.75) == {1, 3}
    assert kept(row, top_p=0.75) == {0, 1, 3}
    assert list(FILTERS) == ["repetition_penalty", "temperature", "top_k", "top_p", "min_p", "typical_p"]


@given(st.lists(rows, min_size=1, max_size=6), st.floats(0, 1, exclude_max=True))
def test_rows_do_not_depend_on_each_other(rows: list[list[float]], u: float) -> None:
    width = max(map(len, rows))
    logits = np.array([row + [-math.inf] * (width - len(row)) for row in rows])
    options = Decoding(temperature=0.9, top_k=5, top_p=0.9, min_p=0.01, typical_p=0.95, repetition_penalty=1.5)
    recent = np.arange(6 * len(rows)).reshape(len(rows), 6) % min(3, width)
    uniforms = np.full(len(rows), u)
    together = choose(logits, options, uniforms, recent)
    for b in range(len(rows)):
        assert choose(logits[b : b + 1], options, uniforms[b : b + 1], recent[b : b + 1])[0] == together[b]


def excess(text: list[int], c: int, allowed: int) -> int:
    """By how much the repetition that `c` makes at the end of `text` is longer than `allowed`."""
    n = 0
    while n < len(text) and any(
        text[j - n - 1 : j] == text[len(text) - n - 1 :] and text[j] == c for j in range(n + 1, len(text))
    ):
        n += 1
    return max(0, n + 1 - allowed) if n else 0


@given(st.lists(st.integers(0, 2), max_size=14), st.integers(1, 6), st.floats(1, 3), st.integers(0, 4))
@example([0, 1, 2, 0, 1, 2, 0, 1], 2, 2.0, 0)
def test_the_repetition_penalty_is_for_longer_repetitions(
    text: list[int], allowed: int, penalty: float, missing: int
) -> None:
    recent = np.array([[-1] * missing + text], np.int64)
    options = Decoding(temperature=1.0, repetition_penalty=penalty, repetition_length=allowed)
    logits = np.array([[0.3, -1.0, 0.0, 0.1]])
    found = FILTERS["repetition_penalty"](logits, options, recent)[0]
    for c in range(4):
        assert found[c] == pytest.approx(logits[0, c] - math.log(penalty) * excess(text, c, allowed))


def test_draws_follow_the_filtered_probabilities() -> None:
    row, draws = [math.log(p) for p in (0.1, 0.2, 0.3, 0.4)], 20_000
    decoding = Decoding(temperature=1.0, top_k=3)
    uniforms = np.random.default_rng(0).random(draws)
    found = np.bincount(choose(np.tile(row, (draws, 1)), decoding, uniforms, np.empty((draws, 0), np.int64)))
    expected = np.array([0, 2, 3, 4]) / 9 * draws
    assert found[0] == 0
    assert ((found[1:] - expected[1:]) ** 2 / expected[1:]).sum() < 13.8  # the 99.9 % quantile, 2 degrees of freedom


@pytest.mark.parametrize("options", [{}, {"greedy": True}, {"top_k": 1}, {"temperature": 0.0, "top_p": 0.5}])
def test_a_network_that_diverged_is_refused(options: dict[str, object]) -> None:
    def chosen(*row: float) -> int:
        logits = np.array([[0.0, 1.0, 0.0], row], np.float32)
        return choose(logits, Decoding(**options), np.zeros(2), np.empty((2, 0), np.int64))[1]

    for row in ([0, math.nan, 1], [0, math.inf, 1], [math.nan] * 3, [-math.inf] * 3):
        with pytest.raises(UsageError, match="not finite"):
            chosen(*row)
    assert chosen(-math.inf, 3e38, -math.inf) == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_k": 2.5}, "top_k=2.5 must be an integer"),
        ({"top_p": 0.0}, "top_p=0.0 must be more than 0"),
        ({"top_p": 1.1}, "top_p=1.1 must be at most 1"),
        ({"min_p": -0.1}, "min_p=-0.1 must be more than 0"),
        ({"typical_p": math.nan}, "typical_p=nan must"),
        ({"repetition_penalty": 0.5}, "repetition_penalty=0.5 must be at least 1"),
        ({"topk": 5}, "topk is not an option"),
    ],
)
def test_values_out_of_range_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Decoding(**options)
