"""The table of docs/evaluation.md, made for a small run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import evaluation
from tests.helpers import SMALL, of_extra, run_train


def test_every_row_is_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of_extra("compress", "constriction")
    (tmp_path / "text.txt").write_text("the cat sat on the mat, and the dog sat on the cat. " * 40)
    data = ["data=text", f"data.path={tmp_path}/text.txt", "data.bptt=8", "data.batch_size=4", "schedule=sgdr"]
    run_train(*SMALL[:3], *data, "trainer.max_epochs=4", "callbacks=none", f"hydra.run.dir={tmp_path}/run")
    monkeypatch.setattr(evaluation, "PLAIN", {"trained network": "", "compressors": "--compressors"})
    monkeypatch.setattr(evaluation, "FILES", ("--streams 8",))
    monkeypatch.setattr(sys, "argv", ["evaluation", str(tmp_path / "run"), str(tmp_path / "found.json")])
    capsys.readouterr()
    evaluation.main()
    found = json.loads((tmp_path / "found.json").read_text())
    ends = "ensemble of 2 cycle ends"
    assert list(found) == ["trained network", "compressors", "average of 2 cycle ends", ends, ".clm file, --streams 8"]
    table = capsys.readouterr().out
    assert (
        table.count("\n") >= 9
        and f"| {ends} | {found[ends]['nats_per_character']:.4f} |" in table
        and "| PPMd," in table
    )
    evaluation.main()  # nothing is run again
    assert json.loads((tmp_path / "found.json").read_text()) == found and capsys.readouterr().out == table
