"""Planted corruptions are where they are said to be; the benchmark's table and file."""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import anomalies
from benchmarks.corruptions import KINDS, PHRASES, Corruption, plant
from charlm.errors import UsageError
from charlm.inference.anomalies import Anomaly
from tests.helpers import SMALL, run_train

WORDS = "The philosopher wanted some better ground under every large assertion about nature".split()
CHARS = "".join(sorted(set(" \n." + "".join(WORDS) + "xyz!")))


def made_up(words: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    return "".join(rng.choice(WORDS) + rng.choice([" ", " ", " ", ".\n"]) for _ in range(words))


def test_corruptions_are_where_they_are_said_to_be() -> None:
    text = made_up(4000)
    corrupted, planted = plant(text, CHARS, each=6, seed=3)
    assert Counter(there.kind for there in planted) == dict.fromkeys(KINDS, 6)
    assert plant(text, CHARS, each=6, seed=3) == (corrupted, planted) != plant(text, CHARS, each=6, seed=4)
    done, original = 0, 0
    for there in planted:
        kept = corrupted[done : there.start]
        assert text[original : original + len(kept)] == kept and (done == 0 or len(kept) > 100)
        original += len(kept)
        new, old = corrupted[there.start : there.end], text[original : original + there.end - there.start]
        match there.kind:
            case "swapped letters":
                assert new == old[::-1] != old and new.isalpha()
            case "wrong case":
                assert new.lower() == old != new and len(new) == 1 and text[original - 1].isalpha()
            case "noise":
                assert 4 <= len(new) <= 10 and set(new) <= set(CHARS) and new != old
            case "doubled word":
                assert re.search(r"\w+$", text[:original])[0] == new[1:]
            case "another language":
                assert new[1:] in PHRASES and text[original - 1].isalpha()
        done = there.end
        original += 0 if there.kind in ("doubled word", "another language") else len(new)
    assert corrupted[done:] == text[original:]


def test_a_text_too_short_for_the_corruptions() -> None:
    for text in ("", "word " * 20, " " * 10_000):
        with pytest.raises(UsageError, match="too short to hide 10 corruptions"):
            plant(text, CHARS, each=2)


def test_figures() -> None:
    planted = [Corruption("noise", 10, 14), Corruption("noise", 50, 54), Corruption("doubled word", 80, 90)]
    spans = [(8, 11), (12, 20), (54, 60), (85, 86)]  # both in the first, just after the second, in the third
    found = [Anomaly(start, end, 1, 1, "", "", "", 0, 0) for start, end in spans]
    figures = anomalies.figures(planted, found)
    assert (figures["precision"], figures["recall"], figures["passages"]) == (3 / 4, 2 / 3, 4)
    assert figures["recall by kind"]["noise"] == 1 / 2 and figures["recall by kind"]["doubled word"] == 1
    assert anomalies.figures(planted, [])["precision"] is None


def test_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text(made_up(6000))
    run = tmp_path / "run"
    run_train(
        *SMALL,
        "model=gru",
        "data=text",
        f"data.path={tmp_path}/text.txt",
        "data.val=0.4",
        "data.unk=true",
        f"hydra.run.dir={run}",
    )
    arguments = [str(run), "--each", "2", "--rates", "10", "--json", str(tmp_path / "figures.json")]
    monkeypatch.setattr(sys, "argv", ["anomalies.py", *arguments])
    capsys.readouterr()
    anomalies.main()
    assert "precision" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "figures.json").read_text())["rates"]
    assert row["rate"] == 10 and set(row["recall by kind"]) == set(KINDS)
