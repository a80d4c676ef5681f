"""Surprising passages: segments compared with a search over all, thresholds with counts, passages in made-up losses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from charlm.errors import UsageError
from charlm.inference.anomalies import Calibration, calibrate, find_anomalies, maximal_segments

CALIBRATION = Calibration(rate=2.0, characters=20_000, false_alarms=4, allowance=2.0, threshold=5.0)


def losses(text: str, *surprises: tuple[str, float]) -> np.ndarray:
    """1 nat for every character after the first, but for those of the given substrings."""
    nats = np.ones(len(text))
    for part, value in surprises:
        start = text.index(part)
        nats[start : start + len(part)] = value
    return nats[1:]


def segments_by_search(values: list[int], first: int = 0) -> list[tuple[int, int, float]]:
    """The segment with the largest sum, of those the shortest, then the earliest; then the same on either side."""
    sums = [(-sum(values[i:j]), j - i, i, j) for i in range(len(values)) for j in range(i + 1, len(values) + 1)]
    if not sums or min(sums)[0] >= 0:
        return []
    total, _, i, j = min(sums)
    left, right = segments_by_search(values[:i], first), segments_by_search(values[j:], first + j)
    return [*left, (first + i, first + j, -total), *right]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.integers(-4, 4), max_size=14))
@example([1, -1, 1])
@example([2, -1, 1, -3, 4])
def test_segments_equal_those_of_a_search(values: list[int]) -> None:
    assert maximal_segments(np.array(values, float)) == segments_by_search(values)


def test_segments_of_a_long_text_take_linear_time() -> None:
    values = np.tile([1.0, -2.0], 200_000)
    assert len(maximal_segments(values)) == 200_000


@pytest.mark.parametrize("rate", [1, 2.5, 20])
def test_the_threshold_leaves_the_asked_rate(rate: float) -> None:
    nats = np.random.default_rng(0).exponential(1.4, 20_000)
    found = calibrate(nats, rate)
    assert found.allowance == pytest.approx(nats.mean() + nats.std())
    assert found.false_alarms == int(rate * 2) and (found.rate, found.characters) == (rate, 20_000)
    text = " " * 20_001
    assert len(find_anomalies(nats, text, found).found) <= found.false_alarms
    others = [calibrate(nats, rate * factor).threshold for factor in (1, 2, 4)]
    assert others == sorted(others, reverse=True)


def test_equal_losses_give_no_alarm() -> None:
    found = calibrate(np.full(10_000, 1.3))
    assert (found.false_alarms, found.threshold) == (0, 0)


def test_false_alarms_on_another_text_are_as_many() -> None:
    rng = np.random.default_rng(1)
    calibration = calibrate(rng.exponential(1.4, 200_000), 10)
    found = find_anomalies(rng.exponential(1.4, 200_000), " " * 200_001, calibration).found
    assert 150 < len(found) < 250  # 200, with a standard deviation of 14 on either side


def test_a_passage_is_completed_to_words_and_placed() -> None:
    text = "one two\nthree fuor five\nsix"
    found = find_anomalies(losses(text, ("uo", 6.0)), text, CALIBRATION).found
    assert [(f.start, f.end, f.text, f.line, f.column) for f in found] == [(14, 18, "fuor", 2, 7)]
    assert (found[0].score, found[0].nats) == (8.0, 14.0)
    assert (found[0].before, found[0].after) == ("one two\nthree ", " five\nsix")


def test_short_and_long_passages_the_most_surprising_first() -> None:
    text = "it was a nXce day and then pueri aquam portant he left"
    found = find_anomalies(losses(text, ("X", 9.0), ("pueri aquam portant", 3.5)), text, CALIBRATION).found
    assert [f.text for f in found] == ["pueri aquam portant", "nXce"]
    assert [f.score for f in found] == [1.5 * 19, 7.0]


def test_passages_of_one_word_are_one() -> None:
    text = "a internationalisation b"
    found = find_anomalies(losses(text, ("int", 8.0), ("sati", 4.0)), text, CALIBRATION).found
    assert [(f.text, f.score) for f in found] == [("internationalisation", 18.0)]


def test_the_threshold_is_exclusive_and_ends_are_reached() -> None:
    text = "ab, and then cd"
    for first, last, expected in ((7.0, 7.0, []), (7.1, 0, ["ab"]), (0, 7.1, ["cd"])):
        nats = np.array([first, *[0] * 12, last])
        found = find_anomalies(nats, text, CALIBRATION).found
        assert [f.text for f in found] == expected
        assert all(f.nats == pytest.approx(7.1) for f in found)


def test_blanks_are_dropped_unless_they_are_all() -> None:
    text = "ab, \n\n cd"
    assert find_anomalies(losses(text, (", \n", 9.0)), text, CALIBRATION).found[0].text == ","
    assert find_anomalies(losses(text, ("\n\n", 9.0)), text, CALIBRATION).found[0].text == "\n\n"


def test_text_without_blanks_is_not_one_word() -> None:
    text = "字" * 50 + "錯" + "字" * 50
    found = find_anomalies(losses(text, ("錯", 9.0)), text, CALIBRATION).found
    assert [(f.text, f.column) for f in found] == [("錯", 51)]


@settings(max_examples=200, deadline=None)
@given(st.text("ab é\n\ud800漢", max_size=30), st.data())
def test_passages_of_any_text(text: str, data: st.DataObject) -> None:
    size = max(len(text) - 1, 0)
    nats = np.array(data.draw(st.lists(st.floats(0, 20), min_size=size, max_size=size)), float)
    found = sorted(find_anomalies(nats, text, CALIBRATION).found, key=lambda each: each.start)
    for each in found:
        assert each.text == text[each.start : each.end] != ""
        assert (each.before + each.text + each.after) in text
        lines = text[: each.start].split("\n")
        assert (each.line, each.column) == (len(lines), len(lines[-1]) + 1)
        assert each.nats == pytest.approx(np.append(0, nats)[each.start : each.end].sum())
        assert CALIBRATION.threshold < each.score
    assert all(one.end < other.start for one, other in zip(found, found[1:], strict=False))
    reported = np.zeros(len(text), bool)
    for each in found:
        reported[each.start : each.end] = True
    for start, value in enumerate(nats, 1):  # a character that is enough by itself is reported, unless it is a blank
        assert value <= 7 or reported[start] or text[start].isspace()


def test_lines_and_json() -> None:
    text = "one two\nthree fuor five\nsix"
    anomalies = find_anomalies(losses(text, ("uo", 6.0)), text, CALIBRATION)
    assert list(anomalies.lines()) == [
        "1 surprising passage in 26 characters; a text like the calibration text would have about 0.0 "
        "(2 per 10,000 characters)",
        "  line 2, column 7: score 8.0, 14.0 nats in 4 characters",
        "    one␣two⏎three␣»fuor«␣five⏎six",
    ]
    assert list(anomalies.lines(most=0))[1:] == ["  and 1 more"]
    values = json.loads(json.dumps(anomalies.as_dict()))
    assert values["calibration"]["threshold"] == 5 and values["characters"] == 26
    assert values["found"][0] == {
        "start": 14, "end": 18, "line": 2, "column": 7, "text": "fuor", "before": "one two\nthree ",
        "after": " five\nsix", "nats": 14.0, "score": 8.0,
    }  # fmt: skip


def test_texts_without_losses() -> None:
    for text in ("", "a"):
        assert find_anomalies(np.zeros(0), text, CALIBRATION).found == ()


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="3 losses for a text of 3 characters"):
        find_anomalies(np.zeros(3), "abc", CALIBRATION)
    for call in (lambda nats: find_anomalies(nats, "abc", CALIBRATION), calibrate):
        with pytest.raises(UsageError, match="not all finite"):
            call(np.array([1.0, np.nan]))
    with pytest.raises(UsageError, match="on 4,999 characters: calibrate on 5,000 or more"):
        calibrate(np.ones(4_999), 2.0)
    with pytest.raises(UsageError, match="rate=0 must be more than 0"):
        calibrate(np.ones(20_000), 0)
