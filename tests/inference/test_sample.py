"""`sample.py` as a program: what it writes to stdout and stderr, and when."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from charlm.inference.language_model import LanguageModel, load

SCRIPT = Path(__file__).parents[2] / "sample.py"


@pytest.fixture(scope="module")
def folder(one_run: Path) -> Path:
    return one_run


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return load(folder / "runs" / "one")


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    status: int
    out: str
    err: str


def environment(**changes: str) -> dict[str, str]:
    dropped = ("HYDRA_FULL_ERROR", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONUNBUFFERED")
    return {**{k: v for k, v in os.environ.items() if k not in dropped}, **changes}


def sample(folder: Path, *arguments: str, **variables: str) -> Outcome:
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(**variables), capture_output=True, timeout=120)
    assert b"Traceback" not in done.stderr, done.stderr
    return Outcome(done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8"))


def test_stdout_is_the_prompt_and_its_continuation_and_nothing_else(folder: Path, model: LanguageModel) -> None:
    prompt = 'it\'s = "so", (a,b)\n [c] é世!\n\n'
    outcome = sample(folder, f"--prompt={prompt}", "--length", "70", "--seed", "5")
    assert outcome.status == 0
    assert outcome.out == prompt + model.generate(prompt, 70, temperature=0.8, seed=5)
    assert outcome.err == "runs/one/checkpoints/best.ckpt · seed 5\n"


def test_without_a_seed_the_one_that_was_drawn_is_shown(folder: Path, model: LanguageModel) -> None:
    outcome = sample(folder)
    seed = int(re.fullmatch(r".* seed (\d+)\n", outcome.err)[1])
    assert outcome.out == model.generate("", 500, temperature=0.8, seed=seed)
    assert len(outcome.out) == 500
    assert outcome.out != model.generate("", 500, temperature=0.8, seed=seed + 1)


def test_greedy_writes_the_most_likely_characters_of_the_run_that_is_named(folder: Path, model: LanguageModel) -> None:
    greedy = sample(folder, "--greedy", "--length", "40", "--prompt", "a", "--checkpoint", "runs/one")
    assert greedy.out == "a" + model.generate("a", 40, greedy=True)


def test_positions_are_two_aligned_lines(folder: Path, model: LanguageModel) -> None:
    outcome = sample(folder, "--positions", " part\nof")
    assert outcome.status == 0 and outcome.err == "runs/one/checkpoints/best.ckpt\n"
    read, following, rest = outcome.out.split("\n")
    assert rest == ""
    predictions = model.predictions(" part\nof")
    assert read.split() == ["read", "␣", "p", "a", "r", "t", "⏎", "o", "f"]
    for column, (symbol, prediction) in enumerate(zip(read.split()[1:], predictions, strict=True)):
        place = 6 + 8 * column
        assert read[place] == symbol
        shown = prediction.next.replace(" ", "␣").replace("\n", "⏎")
        assert following[place : place + 6] == f"{shown} {prediction.probability:.2f}"


def test_long_texts_take_several_tables(folder: Path) -> None:
    outcome = sample(folder, "--positions", "the quick brown fox", COLUMNS="40")
    lines = outcome.out.splitlines()
    assert "".join(line[4:].replace(" ", "") for line in lines if line.startswith("read")) == "the␣quick␣brown␣fox"
    assert max(map(len, lines)) <= 40


def test_positions_need_a_text(folder: Path) -> None:
    outcome = sample(folder, "--positions", "")
    assert outcome.status == 2 and outcome.out == ""
    assert outcome.err.startswith("error: --positions needs a text")


def test_positions_stay_aligned_whatever_the_characters() -> None:
    from rich.cells import cell_len

    from charlm.inference import sample_output
    from charlm.inference.language_model import Prediction

    rows = [Prediction(read, following, 0.5) for read, following in ("a世", "世a", "\x1bb", "b\u2028", "é\t")]
    read, following, rest = sample_output.positions(rows).split("\n")
    assert rest == ""
    assert [cell.split()[0] for cell in (read[6:].split())] == ["a", "世", "·", "b", "é"]
    for line in (read, following):
        starts = [cell_len(line[: line.index(symbol, 6)]) for symbol in ("世", "b")]
        assert all((start - 6) % 9 == 0 for start in starts), line
    assert "·" in following and "⇥" in following


def test_positions_of_unknown_characters_only_say_so(folder: Path) -> None:
    outcome = sample(folder, "--positions", "🙂", "--unknown", "skip")
    assert outcome.status == 2 and outcome.err.splitlines()[-1].startswith("error: --positions: the model never saw")


def test_positions_name_what_the_model_never_saw(folder: Path) -> None:
    outcome = sample(folder, "--positions", "a🙂")
    assert outcome.status == 2 and outcome.err.endswith("; --unknown skip leaves them out\n")
    assert sample(folder, "--positions", "a🙂", "--unknown", "skip").status == 0


def test_an_emoji_that_the_model_never_saw_is_named(folder: Path) -> None:
    outcome = sample(folder, "--prompt", "well 🙂")
    assert outcome.status == 2
    assert outcome.out == ""
    assert re.search(
        r"^error: .*prompt.*'🙂' \(U\+1F642 SLIGHTLY SMILING FACE\); --unknown skip leaves them out$",
        outcome.err,
        re.MULTILINE,
    )


def test_unknown_characters_can_be_skipped(folder: Path, model: LanguageModel) -> None:
    outcome = sample(folder, "--prompt", "we🙂ll", "--unknown", "skip", "--length", "20", "--seed", "1")
    assert outcome.status == 0
    assert outcome.out == "we🙂ll" + model.generate("well", 20, seed=1)


def test_length_zero_writes_the_prompt_only(folder: Path) -> None:
    outcome = sample(folder, "--prompt", "hello", "--length", "0")
    assert (outcome.status, outcome.out) == (0, "hello")


def test_a_reader_that_has_seen_enough_causes_no_error(folder: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--length", "10000000", "--seed", "1"]
    with subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        try:
            assert len(process.stdout.read(5)) > 0
            process.stdout.close()  # as `| head -c 5` does
            assert process.wait(60) == 0
            assert process.stderr.read().decode().count("\n") == 1  # the line with the seed
        finally:
            process.kill()


def test_characters_arrive_as_they_are_made(folder: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--length", "10000000", "--seed", "1"]
    with subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    ) as process:
        try:
            pieces = [os.read(process.stdout.fileno(), 2**16) for _ in range(20)]
            assert process.poll() is None
            assert all(0 < len(piece) < 2000 for piece in pieces)  # a full buffer would be 8192
        finally:
            process.kill()


def test_help_needs_no_pytorch(folder: Path) -> None:
    command = [sys.executable, "-X", "importtime", str(SCRIPT), "--help"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=20)
    assert done.returncode == 0
    for option in (
        "--checkpoint",
        "--prompt",
        "--length",
        "--temperature",
        "--greedy",
        "--seed",
        "--unknown",
        "--positions",
    ):
        assert option in done.stdout
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in modules
    assert "torch" not in modules


def test_a_terminal_without_utf8_does_not_matter(folder: Path, model: LanguageModel) -> None:
    # Python replaces the C locale by UTF-8 unless it is told not to.
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    outcome = sample(folder, "--length", "300", "--temperature", "2", "--seed", "2", **variables)
    expected = model.generate("", 300, temperature=2, seed=2)
    assert set(expected) & set("éß世")
    assert expected != model.generate("", 300, temperature=0.8, seed=2)
    assert (outcome.status, outcome.out) == (0, expected)
