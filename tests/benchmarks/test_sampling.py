"""The speed of sampling: its table and file, and that its loops write what they should."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import sampling
from charlm.models.recurrent import GRU
from tests.helpers import of_extra

os.environ["KERAS_BACKEND"] = "torch"

# Keras's tensors do not support NumPy 2's copy keyword yet.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sampling", *arguments])
    before = torch.get_num_threads()
    try:
        sampling.main()
    finally:
        torch.set_num_threads(before)


def test_the_table_and_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    quick = ["--seconds", "0.001", "--repeats", "2", "--json", str(file)]
    run(monkeypatch, "--models", "scan_tanh", "keras_loop", "--streams", "1", "3", *quick)
    found = json.loads(file.read_text())
    assert [(row["model"], row["streams"]) for row in found["rows"]] == [
        ("scan_tanh", 1), ("scan_tanh", 3), ("keras_loop", 1), ("keras_loop", 3)
    ]  # fmt: skip
    for row in found["rows"]:
        assert set(row) == {"model", "streams", "ours", "plain"}
        assert all(len(row[side]) == 2 and min(row[side]) > 0 for side in ("ours", "plain"))
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["model", "streams", "charlm", "PyTorch", "ratio", "Keras", "ratio"]
    assert [line.split()[0] for line in lines] == ["scan_tanh"] * 2 + ["keras_loop"] * 2


def test_medians_and_ratios_of_pairs() -> None:
    row = {"model": "gru", "streams": 64, "ours": [10.0, 40.0, 60.0], "plain": [10.0, 10.0, 20.0], "keras": [2.0] * 3}
    assert sampling.line(row).split() == ["gru", "64", "40", "10", "3.0", "2", "20.0"]


def test_keras_takes_part(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    of_extra("keras", "keras")
    monkeypatch.setitem(sampling.KERAS, "gru", ("GRU", 2, 5))
    run(monkeypatch, "--models", "gru", "--streams", "2", "--seconds", "0.001", "--repeats", "1")
    assert len(capsys.readouterr().out.splitlines()[1].split()) == 7


def test_the_other_processes_end_with_the_measurement() -> None:
    with pytest.raises(KeyboardInterrupt), sampling.beside(1) as processes:
        assert processes[0].poll() is None
        raise KeyboardInterrupt
    assert processes[0].poll() is not None


def test_time_is_divided_by_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 0.25)
    monkeypatch.setattr(sampling.time, "perf_counter", lambda: next(clock))
    steps: list[int] = []
    assert sampling.speed(lambda: steps.append(0), 64, 1.0) == 64 * len(steps) / 1.0
    assert len(steps) == 3


def test_both_loops_continue_the_same_text() -> None:
    torch.manual_seed(0)
    network = GRU(sampling.VOCAB, 8, 16).eval()
    with torch.no_grad():
        network.head.weight.mul_(1e6)  # the most likely character has all the probability
    read: list[list[int]] = []
    network.embedding.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].flatten().tolist()))
    step = sampling.plain(network, 1)
    for _ in range(8):
        step()
    network.embedding._forward_hooks.clear()
    step = sampling.ours(network, 1)
    written = [int(step()[0]) for _ in range(8)]
    assert [ids[0] for ids in read[1:]] == written and len(set(written)) > 1
