"""The options of `sample.py`, in this process: prompts, many texts, JSON, and what does not go together."""

from __future__ import annotations

import io
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from charlm.inference.language_model import LanguageModel, load
from tests.helpers import ROOT

Run = Callable[..., str]


@pytest.fixture(scope="module")
def model(one_run: Path) -> LanguageModel:
    return load(one_run / "runs" / "one")


@pytest.fixture
def sample(one_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``python sample.py``. Returns what it writes to stdout, or, if it `fails`, its one sentence."""
    monkeypatch.chdir(one_run)

    def run(*arguments: object, fails: bool = False, stdin: bytes | None = None) -> str:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["sample.py", *map(str, arguments)])
            if stdin is not None:
                patch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
            if not fails:
                runpy.run_path(str(ROOT / "sample.py"), run_name="__main__")
                return capsys.readouterr().out
            with pytest.raises(SystemExit) as end:
                runpy.run_path(str(ROOT / "sample.py"), run_name="__main__")
        assert end.value.code == 2
        out, error = capsys.readouterr()
        assert out == ""
        return error.splitlines()[-1]

    return run


def rows(sample: Run, *arguments: object, **more: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in sample(*arguments, "--format", "jsonl", **more).splitlines()]


def test_a_line_of_json_says_how_to_make_its_text_again(sample: Run, model: LanguageModel) -> None:
    options = ["--prompt", "the ", "--length", 60, "--top-k", 8, "--stop", "世", "--stop", "ab", "--logprobs"]
    found = rows(sample, *options, "--num-samples", 9, "--seed", 4)
    assert [row["seed"] for row in found] == list(range(4, 13))
    for row, expected in zip(
        found, model.samples("the ", 9, 60, seed=4, top_k=8, stop=["世", "ab"], logprobs=True), strict=True
    ):
        assert row == {
            "prompt": "the ",
            "text": expected.text,
            "logprob": expected.logprob,
            "seed": expected.seed,
            "stop_reason": expected.stop_reason,
            "logprobs": list(expected.logprobs),
        }
        assert rows(sample, *options, "--seed", row["seed"]) == [row]
    assert {row["stop_reason"] for row in found} == {"stop", "length"}


def test_without_logprobs_there_is_only_their_sum(sample: Run) -> None:
    (row,) = rows(sample, "--length", 5)
    assert set(row) == {"prompt", "text", "logprob", "seed", "stop_reason"} and row["logprob"] < 0


def test_several_texts_are_separated_by_a_line(sample: Run, model: LanguageModel) -> None:
    out = sample("--prompt", "a", "--num-samples", 3, "--length", 20, "--seed", 7)
    assert out == "\n---\n".join("a" + model.generate("a", 20, seed=seed) for seed in (7, 8, 9))


def test_the_best_of_several(sample: Run, model: LanguageModel) -> None:
    every = sorted(model.samples("a", 6, 20, seed=7, logprobs=True), key=lambda s: -s.logprob)
    out = sample("--prompt", "a", "--num-samples", 2, "--best-of", 6, "--length", 20, "--seed", 7)
    assert out == "\n---\n".join("a" + one.text for one in every[:2])


@pytest.mark.parametrize("content", ["two\nlines", "two\nlines\n", "two\r\nlines\r\n", "\ufefftwo\nlines\n"])
def test_a_prompt_from_a_file_and_from_stdin(sample: Run, model: LanguageModel, tmp_path: Path, content: str) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(content.encode())
    expected = "two\nlines" + model.generate("two\nlines", 20, seed=1)
    assert sample("--prompt-file", path, "--length", 20, "--seed", 1) == expected
    assert sample("--prompt-file", "-", "--length", 20, "--seed", 1, stdin=content.encode()) == expected


def test_a_prompt_on_each_line(sample: Run, model: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"one\r\n\r\n  two\nthree")
    found = rows(sample, "--prompts", path, "--num-samples", 2, "--seed", 3, "--length", 10)
    assert [(row["prompt"], row["seed"]) for row in found] == [
        ("one", 3), ("one", 4), ("  two", 5), ("  two", 6), ("three", 7), ("three", 8),
    ]  # fmt: skip
    assert all(row["text"] == model.generate(row["prompt"], 10, seed=row["seed"]) for row in found)
    out = sample("--prompts", "-", "--seed", 3, "--length", 10, stdin=path.read_bytes())
    texts = [prompt + model.generate(prompt, 10, seed=3 + i) for i, prompt in enumerate(["one", "  two", "three"])]
    assert out == "\n---\n".join(texts)


def test_sentences_and_filters_reach_the_model(sample: Run, model: LanguageModel) -> None:
    arguments = ["--top-p", 0.8, "--min-p", 0.01, "--typical-p", 0.9, "--repetition-penalty", 1.5]
    more = ["--repetition-length", 2, "--repetition-window", 50, "--temperature", 1.2, "--stop-at", "sentence"]
    options = {"top_p": 0.8, "min_p": 0.01, "typical_p": 0.9, "repetition_penalty": 1.5, "repetition_length": 2}
    options |= {"repetition_window": 50, "temperature": 1.2, "stop_at": "sentence"}
    out = sample("--prompt", "a", "--length", 300, "--seed", 2, *arguments, *more)
    assert out == "a" + model.generate("a", 300, seed=2, **options)
    assert out != "a" + model.generate("a", 300, seed=2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--complete", "a", "--temperature", "1"], "--temperature means nothing with --complete"),
        (["--positions", "a", "--prompt", "b"], "--prompt means nothing with --positions"),
        (["--complete", "a", "--positions", "b"], "--complete means nothing with --positions"),
        (["--infill", "a ___ b", "--seed", "1"], "--seed means nothing with --infill"),
        (["--beams", "4", "--top-k", "3"], "--top-k means nothing with --beams"),
        (["--beams", "4", "--seed", "1"], "--seed means nothing with --beams"),
        (["--beams", "4", "--greedy"], "--greedy means nothing with --beams"),
        (["--beams", "4", "--num-samples", "5"], "--beams 4 is less than --num-samples 5"),
        (["--beams", "0"], "--beams=0 must be at least 1"),
        (["--interactive", "--num-samples", "2"], "--num-samples means nothing with --interactive"),
        (["--prompt", "a", "--prompt-file", "b"], "--prompt and --prompt-file both give the prompt"),
        (["--prompts", "a", "--prompt-file", "b"], "--prompt-file and --prompts both give the prompt"),
        (["--greedy", "--num-samples", "2"], "a greedy text is the same each time"),
        (["--temperature", "0", "--best-of", "2"], "a greedy text is the same each time"),
        (["--num-samples", "3", "--best-of", "2"], "--best-of 2 is less than --num-samples 3"),
        (["--num-samples", "0"], "--num-samples=0 must be at least 1"),
        (["--num-samples", "1.5"], "--num-samples=1.5 must be an integer"),
        (["--num-samples", "x"], "--num-samples: 'x' must be a number"),
        (["--num-samples", "2", "--seed", str(2**63 - 1)], "--seed=9223372036854775807 must leave room"),
        (["--prompt-file", "-", "--json-schema", "-"], "--prompt-file and --json-schema both read stdin"),
        (["--regex", "a", "--stop", "b"], "--stop would end a text before it matches"),
        (["--logprobs"], "--logprobs needs --format jsonl"),
        (["--format", "xml"], "--format: invalid choice: 'xml'"),
        (["--stop", ""], "--stop='' must not be empty"),
        (["--charset", ""], "--charset='' must not be empty"),
        (["--regex", ""], "--regex='' must not be empty"),
        (["--stop-at", "page"], "--stop-at: invalid choice: 'page'"),
        (["--top-k", "0"], "--top-k=0 must be at least 1"),
        (["--top-p", "0"], "--top-p=0 must be more than 0"),
        (["--top-p", "nan"], "--top-p=nan must"),
        (["--min-p", "1.5"], "--min-p=1.5 must be at most 1"),
        (["--repetition-penalty", "0"], "--repetition-penalty=0 must be at least 1"),
        (["--topk", "3"], "there is no option --topk: did you mean --top-k?"),
        (["--complete", ""], "--complete needs a text"),
        (["--infill", ""], "--infill needs a text"),
        (["--prompt-file", "nowhere.txt"], "--prompt-file nowhere.txt: No such file"),
        (["--prompt-file", "runs"], "--prompt-file runs: Is a directory"),
        (["--prompts", "nowhere.txt"], "--prompts nowhere.txt: No such file"),
        (["--json-schema", "nowhere.txt"], "--json-schema nowhere.txt: No such file"),
    ],
)
def test_mistakes_are_one_sentence(sample: Run, arguments: list[str], sentence: str) -> None:
    assert sample(*arguments, fails=True).removeprefix("error: ").startswith(sentence)


@pytest.mark.parametrize(
    ("option", "content", "sentence"),
    [
        ("--prompt-file", b"", "--prompt-file - is empty: to start from nothing, leave it out"),
        ("--prompt-file", b"\n", "--prompt-file - is empty"),
        ("--prompt-file", b"caf\xe9", "--prompt-file - is not in UTF-8 (byte 3)"),
        ("--prompt-file", "€".encode(), "the model never saw some characters of the prompt"),
        ("--prompts", b"\n\n", "--prompts - has no line with a prompt"),
        ("--prompts", "a\n€".encode(), "the model never saw some characters of the prompt"),
        ("--json-schema", b"{", "--json-schema - is not JSON"),
        ("--json-schema", b"[1]", "--json-schema - is not a JSON schema"),
    ],
)
def test_files_that_cannot_be_used(sample: Run, option: str, content: bytes, sentence: str) -> None:
    assert sample(option, "-", fails=True, stdin=content).removeprefix("error: ").startswith(sentence)
