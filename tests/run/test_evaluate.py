"""``evaluate.py`` and ``charlm.evaluate`` on real runs: figures, files, compression, and every kind of bad input."""

from __future__ import annotations

import csv
import json
import math
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charlm
from tests.helpers import ROOT, SMALL, of_extra, run_train, summary

Run = Callable[..., str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``a`` and ``b`` differ in their seed, ``windows`` predicts after a window, ``other`` has another vocabulary."""
    folder = tmp_path_factory.mktemp("evaluate")
    text = "the cat sat on the mat, and the dog sat on the cat. " * 80
    (folder / "text.txt").write_text(text)
    (folder / "other.txt").write_text(text.upper())
    data = ["data=text", f"data.path={folder}/text.txt", "data.bptt=8", "data.batch_size=4", "data.test=0.1"]
    common = [*SMALL, "callbacks=none", "optimizer.lr=1e-2"]
    run_train(*common, *data, "seed=1", f"hydra.run.dir={folder}/a")
    run_train(*common, *data, "seed=2", f"hydra.run.dir={folder}/b")
    run_train(*common, "data=text", f"data.path={folder}/other.txt", "data.bptt=8", f"hydra.run.dir={folder}/other")
    windows = ["data=text_windows", f"data.path={folder}/text.txt", "data.bptt=8", "model=char_loop"]
    run_train(*windows, *common[:1], "model.hidden_size=8", "trainer.max_epochs=1", f"hydra.run.dir={folder}/windows")
    return folder


@pytest.fixture
def evaluate(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``python evaluate.py`` in the folder of the runs, in this process. Returns what it prints."""
    monkeypatch.chdir(runs)

    def run(*arguments: object, fails: bool = False) -> str:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
            if not fails:
                runpy.run_path(str(ROOT / "evaluate.py"), run_name="__main__")
                return capsys.readouterr().out
            with pytest.raises(SystemExit) as end:
                runpy.run_path(str(ROOT / "evaluate.py"), run_name="__main__")
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    return run


def figures(evaluate: Run, *arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(evaluate(*arguments, "--json", "-"))
    return found


def test_it_reports_the_loss_that_training_reported(evaluate: Run, runs: Path) -> None:
    found = figures(evaluate, "a", "--protocol", "streams:4")
    assert found["nats_per_character"] == pytest.approx(summary(runs / "a")["best_val_nats"], rel=1e-6)
    assert found["text"] == "val split of text" and found["protocol"] == "streams:4"
    test = figures(evaluate, "a", "--split", "test", "--protocol", "streams:4")
    assert test["nats_per_character"] == pytest.approx(summary(runs / "a")["test_nats"], rel=1e-6)
    assert {"bits_per_character", "bits_per_byte", "perplexity", "accuracy", "characters"} <= test.keys()


def test_the_table_names_what_it_shows(evaluate: Run) -> None:
    out = evaluate("--checkpoint", "a")
    for words in (
        "model        a\n",
        "val split of text, 415 characters",
        "protocol     stream: one stream",
        "nats/char",
    ):
        assert words in out, out
    assert "first letters of words" in out and "distance" not in out


def test_nobody_reads_what_it_prints(runs: Path) -> None:
    for arguments in (["a"], ["a", "--json", "-"]):
        command = shlex.join([sys.executable, str(ROOT / "evaluate.py"), *arguments]) + " | head -1"
        done = subprocess.run(command, shell=True, cwd=runs, capture_output=True, text=True)
        assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")


def test_a_text_of_ones_own(evaluate: Run, runs: Path) -> None:
    (runs / "mine.txt").write_text("the cat sat on the dog.\r\nthe DOG sat.\n")
    found = figures(evaluate, "a", "--text", "mine.txt")
    assert found["characters"] == 36  # CRLF is one line end for this model
    assert found["unknown_characters"] == 5 and found["unknown_nats"] > 5 * math.log(100)


def test_without_a_model_it_is_the_newest_run(
    evaluate: Run, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(runs / "a", tmp_path / "runs/a")
    monkeypatch.chdir(tmp_path)
    assert figures(evaluate)["model"] == str(Path("runs/a"))


def test_several_models_are_sorted_with_means_over_seeds(evaluate: Run, runs: Path) -> None:
    (runs / "results.csv").write_text("as in a sweep's folder")
    arguments = ["b", "a", "results.csv", "--ensemble", "a", "b", "--average", "a", "a"]
    found = figures(evaluate, *arguments)
    losses = [model["nats_per_character"] for model in found["models"]]
    assert losses == sorted(losses) and len(losses) == 4
    by_name = {model["model"]: model["nats_per_character"] for model in found["models"]}
    assert by_name["average of a, a"] == pytest.approx(by_name["a"])
    assert by_name["ensemble of a, b"] < max(by_name["a"], by_name["b"])
    pair = [by_name["a"], by_name["b"]]
    (seeds,) = (row for row in found["seeds"] if row["models"] in (["a", "b"], ["b", "a"]))
    assert sorted(seeds["seeds"]) == [1, 2]
    assert seeds["mean_nats_per_character"] == pytest.approx(np.mean(pair))
    assert seeds["standard_deviation"] == pytest.approx(np.std(pair, ddof=1))
    table = evaluate(*arguments)
    assert "95 % interval" in table and "one stream" in table
    assert "models that differ in their seed" in table


def test_a_model_that_cannot_be_evaluated_is_left_out(evaluate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(evaluate, "a", "other", "--split", "test")
    assert [model["model"] for model in found["models"]] == ["a"]


def test_a_windowed_model_is_evaluated(evaluate: Run) -> None:
    assert figures(evaluate, "windows")["nats_per_character"] < 3
    assert figures(evaluate, "windows", "--protocol", "windows:20", "--cache")["methods"]["cache"]["size"] == 2000


def test_methods_and_python_agree(evaluate: Run, runs: Path) -> None:
    found = figures(evaluate, "a", "--dynamic", "--dynamic-rate", "0.05", "--temperature", "fit")
    same = charlm.evaluate(runs / "a", dynamic="sgd", dynamic_rate=0.05, temperature="fit")
    assert same.evaluation.nats == pytest.approx(found["nats_per_character"], rel=1e-9)
    assert found["methods"]["temperature"]["fitted_on"] == "test"
    assert found["nats_per_character"] < figures(evaluate, "a")["nats_per_character"]
    assert len(same.model.generate("the", 20, seed=1)) == 20  # it is sampled from as any other
    assert same.model.score(same.evaluation.losses.text) == pytest.approx(same.evaluation.nats, rel=1e-4)
    assert "stream" in repr(same)


def test_a_row_for_every_character(evaluate: Run, runs: Path, tmp_path: Path) -> None:
    pyarrow = of_extra("evaluate", "pyarrow.parquet")
    found = json.loads(evaluate("a", "--json", "-", "--per-character", tmp_path / "each.csv"))
    with (tmp_path / "each.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found["characters"]
    assert np.mean([float(row["nats"]) for row in rows]) == pytest.approx(found["nats_per_character"])
    text = charlm.evaluate(runs / "a").evaluation.losses.text
    assert "".join(row["character"] for row in rows) == text[1:]
    evaluate("a", "--per-character", tmp_path / "each.parquet")
    table = pyarrow.read_table(tmp_path / "each.parquet").to_pydict()
    assert "".join(table["character"]) == text[1:] and table["rank"] == [int(row["rank"]) for row in rows]


def test_compressors_beside_the_model(evaluate: Run) -> None:
    of_extra("compress", "pyppmd")
    rows = {row["name"]: row for row in figures(evaluate, "a", "--compressors")["compressors"]}
    assert {"a", "xz", "bzip2", "zstd", "PPMd", "zpaq"} == rows.keys()
    assert 0 <= rows["xz"]["bytes"] < rows["xz"]["unprimed"]
    assert "PPMd" in evaluate("a", "--compressors")


def test_surprising_passages(evaluate: Run, runs: Path) -> None:
    text = (runs / "text.txt").read_text()[:520]
    (runs / "odd.txt").write_text(text[:260] + "tttaaanndddm " + text[260:])
    found = figures(evaluate, "a", "--text", "odd.txt", "--anomalies", "30")["anomalies"]
    assert any(260 <= each["start"] <= 273 for each in found["found"])
    assert "surprising passage" in evaluate("a", "--text", "odd.txt", "--anomalies", "30")


def test_memorised_text(evaluate: Run, runs: Path) -> None:
    of_extra("evaluate", "pydivsufsort")
    (runs / "sample.txt").write_text("a dog sat on the mat, and the dog sat on the dog")
    found = figures(evaluate, "a", "--memorised", "sample.txt")["memorised"]
    assert found["longest"]["text"] == "sat on the mat, and the dog sat on the " or found["longest"]["length"] > 30
    assert "longest match" in evaluate("a", "--memorised", "sample.txt")


METHODS: list[list[str]] = [
    [],
    ["--streams", "5"],
    ["--dynamic", "rms", "--dynamic-rate", "1e-3", "--temperature", "1.1"],
    ["--cache"],
]


@pytest.mark.parametrize("options", METHODS)
def test_files_are_compressed_and_restored(options: list[str], evaluate: Run, runs: Path, tmp_path: Path) -> None:
    of_extra("compress", "constriction")
    data = (runs / "text.txt").read_bytes()[:1500] + b"\xff\x00\r\nMeow \xe2\x82"
    source, packed, restored = tmp_path / "x.bin", tmp_path / "x.bin.clm", tmp_path / "y.bin"
    source.write_bytes(data)
    out = evaluate("a", "--compress", source, *options)
    assert "bytes of information" in out and "xz" in out
    assert packed.stat().st_size < len(data) / 3
    assert "characters/s" in evaluate("a", "--decompress", packed, "-o", restored)
    assert restored.read_bytes() == data
    assert "needs the checkpoint" in evaluate("b", "--decompress", packed, "-o", restored, fails=True)
    source.unlink()
    evaluate("a", "--decompress", packed)
    assert source.read_bytes() == data
    assert "already" in evaluate("a", "--decompress", packed, fails=True)


def test_an_ensemble_compresses(evaluate: Run, runs: Path, tmp_path: Path) -> None:
    of_extra("compress", "constriction")
    evaluate("--ensemble", "a", "b", "--compress", "text.txt", "-o", tmp_path / "t.clm", "--streams", "64")
    evaluate("--ensemble", "a", "b", "--decompress", tmp_path / "t.clm", "-o", tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == (runs / "text.txt").read_bytes()
    assert "needs the checkpoint" in evaluate("a", "--decompress", tmp_path / "t.clm", "-o", tmp_path / "t", fails=True)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["a", "--split", "validation"], "--split: invalid choice: 'validation'"),
        (["other", "--split", "test"], "has no test split (data.test=0): choose --split train or --split val"),
        (["a", "--protocol", "windows"], "there is no protocol 'windows'"),
        (["a", "--text", "nowhere.txt"], "nowhere.txt"),
        (["a", "--text", "empty.txt"], "empty.txt is empty"),
        (["a", "--text", "one.txt"], "has nothing to predict"),
        (["a", "--text", "one.txt", "--dynamic"], "has nothing to predict"),
        (["a", "--text", "greek.txt"], "knows no character of this text"),
        (["a", "--dynamic", "--protocol", "windows:20"], "--dynamic learns along a text"),
        (["a", "--dynamic-rate", "1"], "--dynamic-rate needs dynamic"),
        (["a", "--dynamic", "--dynamic-rate", "-1"], "--dynamic-rate"),
        (["a", "--temperature", "hot"], "'hot' must be a number or fit"),
        (["a", "b", "--per-character", "x.csv"], "--per-character is for one model, not for 2"),
        (["a", "--per-character", "x.txt"], "must end in .csv or .parquet"),
        (["a", "--per-character", "no/x.csv"], "name a file in a folder that exists"),
        (["a", "--json", "no/x.json"], "name a file in a folder that exists"),
        (["--dynamic", "a"], "--dynamic takes a for its value: write a before it"),
        (["--anomalies", "a"], "--anomalies takes a for its value: write a before it"),
        (["a", "--text", "one.txt", "--split", "test"], "--split does not go with text"),
        (["a", "--ensemble", "a", "other"], "has another vocabulary"),
        (["a", "--anomalies", "0", "--split", "test"], "must be more than 0"),
        (["a", "--anomalies", "1", "--split", "test"], "cannot be measured on"),
        (["a", "--compressors", "--split", "train"], "choose another split"),
        (["a", "--anomalies"], "--anomalies needs another text than validation text"),
        (["a", "--ensemble", "a"], "--ensemble needs two models or more"),
        (["nowhere"], "nowhere"),
        (["a", "--compress", "a.txt", "--decompress", "b.clm"], "two commands"),
        (["a", "--streams", "2"], "--streams is for --compress only"),
        (["a", "--compress", "nowhere"], "nowhere does not exist"),
        (["a", "--compress", "text.txt", "-o", "text.txt"], "is the file to read"),
        (["a", "--compress", "text.txt", "-o", "no/x.clm"], "cannot be written"),
        (["a", "--compress", "text.txt", "--streams", "0"], "--streams 0 must be a whole number from 1 to 4096"),
        (["a", "--decompress", "text.txt", "-o", "x"], "text.txt is not a .clm file"),
        (["a", "--decompress", "text.txt", "-o", "x", "--cache"], "from the file: leave them out"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], problem: str, evaluate: Run, runs: Path) -> None:
    for name, text in (("empty", ""), ("one", "a"), ("greek", "λόγος")):
        (runs / f"{name}.txt").write_text(text)
    assert problem in evaluate(*arguments, fails=True)


def test_a_corpus_that_is_gone_or_has_changed(evaluate: Run, runs: Path) -> None:
    moved = runs / "moved.txt"
    (runs / "text.txt").rename(moved)
    try:
        error = evaluate("a", fails=True)
        assert "text.txt" in error and "--text FILE evaluates another" in error
        assert figures(evaluate, "a", "--text", "moved.txt")["characters"] > 4000
        assert "text.txt" in evaluate("a", "--dynamic", "--text", "moved.txt", fails=True)  # the rate needs it
        (runs / "text.txt").write_text(moved.read_text() + "more")
        assert "is not the text that a was trained on" in evaluate("a", fails=True)
    finally:
        moved.rename(runs / "text.txt")
