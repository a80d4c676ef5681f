"""Users' mistakes: one clear sentence on stderr, status 2, no traceback, nothing overwritten.

A few tests start the real programs. The others run the same scripts in this process, which avoids importing PyTorch
each time.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra.core.singleton import Singleton

from tests.helpers import ROOT
from tests.programs import Outcome, contents, environment, nothing_was_trained, program

SMALL = ("model.hidden_size=16", "trainer.max_epochs=1", "trainer.accelerator=cpu", "logger=none")


Program = Callable[..., Outcome]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog.\n" * 60)
    return path


def overridden(run_folder: Path, text: Path, overrides: tuple[str, ...]) -> list[str]:
    """The overrides of a small run on `text`, followed by `overrides`, which take precedence."""
    return ["data=text", f"data.path={text}", *SMALL, f"hydra.run.dir={run_folder}", *overrides]


@pytest.fixture
def train(run_folder: Path, text: Path, tmp_path: Path) -> Program:
    """``python train.py`` for a small run, with more overrides."""

    def start(*overrides: str) -> Outcome:
        return program("train.py", *overridden(run_folder, text, overrides), env=environment(tmp_path))

    return start


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Program]:
    """Runs a script as ``__main__`` in this process, and restores what it changes in the process."""
    hydra_state, variables = Singleton.get_state(), dict(os.environ)
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)

    def start(script: str, *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        status: object = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            status = end.code
        except BaseException:  # end as the interpreter would
            traceback.print_exc()
            status = 1
        captured = capsys.readouterr()
        return Outcome(status if isinstance(status, int) else 1, captured.out, captured.err)

    yield start
    os.environ.clear()
    os.environ.update(variables)
    Singleton.set_state(hydra_state)


@pytest.fixture
def train_here(here: Program, run_folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Like `train`, but in this process."""
    monkeypatch.chdir(ROOT)
    return lambda *overrides: here("train.py", *overridden(run_folder, text, overrides))


def test_data_text_without_a_path_says_what_to_give(train: Program, run_folder: Path) -> None:
    assert train("data.path=").is_refusal("data.path=", "FILE", "FOLDER")
    assert nothing_was_trained(run_folder)


def test_bytes_that_are_not_utf8_are_located(train: Program, text: Path, run_folder: Path) -> None:
    text.write_bytes("le café\n".encode("latin-1") * 90)
    assert train("data.encoding=utf-8").is_refusal(str(text), "0xE9", "offset 6", "data.encoding=")
    assert nothing_was_trained(run_folder)


def test_an_unknown_model_is_answered_with_the_choices(train: Program, run_folder: Path) -> None:
    assert train("model=nonsense").is_refusal("there is no model=nonsense", "gru", "lstm", "rnn")
    assert not run_folder.exists()


def test_an_unknown_option_is_named(train: Program, run_folder: Path) -> None:
    assert train("model.nonsense=1").is_refusal("model.nonsense", sentences=False)
    assert not run_folder.exists()


def test_an_output_folder_below_a_file_is_refused(train: Program, text: Path) -> None:
    before = text.read_bytes()
    assert train(f"hydra.run.dir={text}/run").is_refusal(f"{text}/run", "Not a directory", "choose another")
    assert text.read_bytes() == before


@pytest.mark.parametrize(
    ("named", "file"), [("data=tinyshakespeare", "tinyshakespeare.txt"), ("experiment=stateful_gru", "nietzsche.txt")]
)
def test_a_corpus_that_was_named_is_never_replaced(named: str, file: str, run_folder: Path, tmp_path: Path) -> None:
    env = environment(tmp_path)
    env.pop("CHARLM_DATA_DIR", None)
    outcome = program("train.py", named, *SMALL, f"hydra.run.dir={run_folder}", env=env)
    assert outcome.is_refusal(file, "CHARLM_DATA_DIR", "data=text data.path=FILE")
    assert nothing_was_trained(run_folder)


def test_the_default_corpus_is_replaced_loudly_and_on_record(run_folder: Path, tmp_path: Path) -> None:
    env = environment(tmp_path)
    env.pop("CHARLM_DATA_DIR", None)
    sizes = ("data.train=3000", "data.val=1000")
    outcome = program("train.py", *SMALL, *sizes, f"hydra.run.dir={run_folder}", env=env)
    assert outcome.status == 0, outcome
    assert "Traceback" not in outcome.err
    shown = " ".join(outcome.out.split())
    assert "NO NIETZSCHE" in shown
    assert "TRAINING ON PYTHON_DOCS INSTEAD" in shown
    assert "CHARLM_DATA_DIR" in shown
    summary = json.loads((run_folder / "summary.json").read_text())
    assert summary["corpus"] == "python_docs"
    assert summary["corpus_substituted"] is True
    assert summary["corpus_source"] == "pydoc_data.topics"
    entry = torch.load(run_folder / "checkpoints" / "best.ckpt", weights_only=True)["charlm"]
    assert entry["config"]["data"]["name"] == "python_docs"
    assert entry["config"]["data"]["train"] == 3000
    assert entry["corpus"]["name"] == "python_docs"
    assert "name: python_docs" in (run_folder / ".hydra" / "config.yaml").read_text()


def test_sampling_without_any_run_says_so(tmp_path: Path) -> None:
    outcome = program("sample.py", cwd=tmp_path, env=environment(tmp_path))
    assert outcome.is_refusal("runs/", "train.py", "--checkpoint")
    assert outcome.out == ""


# The same scripts, in this process.


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("data.batch_size=-1", "data.batch_size=-1 must be at least 1"),
        ("data.batch_size=2.5", "data.batch_size=2.5 must be an integer"),
        ("data.batch_size=true", "data.batch_size=true must be an integer"),
        ("data.bptt=0", "data.bptt=0 must be at least 1"),
        ("data.bptt=abc", "data.bptt='abc' must be an integer"),
        ("data.val=1.5", "data.val=1.5 must be"),
        ("data.val=abc", "data.val='abc' must be"),
        ("data.mode=nonsense", "data.mode='nonsense' must be 'streams' or 'windows'"),
        ("data.split=nonsense", "data.split='nonsense' must be 'contiguous' or 'random'"),
        ("data.lowercase=maybe", "data.lowercase"),
        ("data.pad=3", "data.pad"),
        ("data.unk=3", "data.unk"),
        ("data.encoding=nonsense", "data.encoding=nonsense"),
        ("data.path=[a]", "data.path"),
        ("+data.nonsense=1", "nonsense"),
        ("model.hidden_size=0", "model.hidden_size=0 must be at least 1"),
        ("model.hidden_size=abc", "model.hidden_size='abc' must be an integer"),
        ("model.hidden_size=true", "model.hidden_size=true must be an integer"),
        ("model.layers=-1", "model.layers=-1 must be at least 1"),
        ("model.dropout=2", "model.dropout=2 must be less than 1"),
        ("model.output_dropout=nan", "model.output_dropout=nan must be"),
        ("+model.nonsense=1", "nonsense"),
        ("model._target_=os.system", "'os.system' is not a network in charlm.models"),
        ("model._target_=charlm.models.recurrent.nn.GRU", "charlm.models.recurrent.nn.GRU"),
        ("model._target_=charlm.models.recurrent._Recurrent", "charlm.models.recurrent._Recurrent"),
        ("seed=-1", "seed=-1 must be at least 0"),
        ("seed=abc", "seed='abc' must be an integer"),
        ("seed=5000000000", "seed=5000000000"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0 must be at least 1"),
        ("trainer.max_epochs=-1", "trainer.max_epochs=-1 must be at least 1"),
        ("trainer.accelerator=nonsense", "nonsense"),
        ("trainer.precision=nonsense", "nonsense"),
        ("+trainer.nonsense=1", "nonsense"),
        ("optimizer.lr=-1", "optimizer.lr=-1"),
        ("optimizer.lr=abc", "optimizer.lr"),
        ("+optimizer.nonsense=1", "nonsense"),
        ("schedule.interval=nonsense", "schedule.interval='nonsense' must be 'epoch' or 'step'"),
        ("schedule.scheduler.at=1.5", "schedule.scheduler.at=1.5 must be"),
        ("schedule=sgdr schedule.scheduler.cycle_mult=0", "schedule.scheduler.cycle_mult=0 must be at least 1"),
        ("parameter_groups.head.lr=-1", "parameter_groups.head.lr=-1"),
        ("parameter_groups.head.lr=abc", "parameter_groups.head.lr='abc' must be a number"),
        ("parameter_groups=3", "parameter_groups=3 must be a section of options"),
        (
            "schedule=sgdr schedule.interval=epoch",
            "schedule.interval='epoch' does not fit this scheduler, which needs 'step'",
        ),
        (
            "schedule=step schedule.interval=step",
            "schedule.interval='step' does not fit this scheduler, which needs 'epoch'",
        ),
        ("schedule.scheduler.factor=abc", "schedule.scheduler.factor='abc'"),
        ("schedule.scheduler.factor=-1", "schedule.scheduler.factor=-1"),
        (
            "schedule=sgdr schedule.scheduler.eta_min=1",
            "schedule.scheduler.eta_min=1.0 must not be above the learning rate 0.001",
        ),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1"),
        ("trainer.gradient_clip_algorithm=value", "clips nothing without trainer.gradient_clip_val"),
        ("data.split=random", "data=text_windows"),
        ("callbacks=none +callbacks.samples.length=3", "callbacks.samples is not a callback"),
        ("model=keras_rnn model.embedding_size=0", "model.embedding_size=0 must be at least 1"),
        (
            "model=keras_rnn model.embedding_size=false",
            "model.embedding_size=false must be an integer",
        ),
        ("model=keras_rnn model.dense_size=0", "model.dense_size=0 must be at least 1"),
        ("parameter_groups.head=3", "parameter_groups.head=3"),
        ("+parameter_groups.head.momentum=1", "momentum"),
        ("+parameter_groups.body={lr: 1}", "parameter_groups.body is not an option"),
        ("objective.reduction=max", "objective.reduction='max' must be 'mean' or 'sum'"),
        ("objective.l2=-1", "objective.l2=-1"),
        ("+objective.nonsense=1", "nonsense"),
        ("trainer.gradient_clip_algorithm=nonsense", "nonsense"),
        ("data.ratio=[3,1]", "data.ratio=[3, 1] is for data=mix"),
        ("data.shuffle=maybe", "data.shuffle='maybe' must be true or false"),
        ("model=char_loop", "data=text_windows for your own text, with data.bptt=8, not streams of"),
        ("model=char3 data.mode=windows", "with data.bptt=3, not windows of"),
        ("model=char_loop model.window=0", "model.window=0 must be at least 1"),
        ("model=keras_loop model.window=null", "model.own_embeddings=true needs a window"),
        ("model=keras_loop model.activation=gelu", "model.activation='gelu' must be 'tanh' or 'relu'"),
        ("model=keras_rnn model.dropout=1", "model.dropout=1 must be less than 1"),
        ("model=irnn model.identity=3", "model.identity=3 must be true or false"),
        ("model._target_=charlm.models.sequence.Sequence", "model"),
        ("model._target_=charlm.models.lesson.loops._Loop", "charlm.models.lesson.loops._Loop"),
        ("callbacks.samples.length=0", "callbacks.samples"),
        ("callbacks.samples.temperature=-1", "callbacks.samples.temperature=-1"),
        ("callbacks.samples.temperature=nan", "callbacks.samples.temperature=nan"),
        ("+callbacks.samples.nonsense=1", "nonsense"),
    ],
)
def test_a_value_that_cannot_work_is_refused(train_here: Program, run_folder: Path, override: str, named: str) -> None:
    overrides = [override] if "{" in override else override.split(" ")
    assert train_here(*overrides).is_refusal(overrides[0].lstrip("+").split(".")[0].split("=")[0], named)
    assert nothing_was_trained(run_folder)


def test_a_wandb_mode_that_does_not_exist_is_refused(train_here: Program, run_folder: Path) -> None:
    outcome = train_here("logger=wandb", "logger.mode=nonsense")
    assert outcome.is_refusal("logger.mode='nonsense' must be 'auto', 'online' or 'offline'")
    assert nothing_was_trained(run_folder)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.hidden_size=[1", "[1"),
        ("model.hidden_size", "model.hidden_size"),
        ("optimizer=nonsense", "there is no optimizer=nonsense: choose one of adam, adamw, sgd"),
        ("nonsense=1", "nonsense"),
        ("logger=null", "logger"),
    ],
)
def test_an_override_that_hydra_cannot_use_is_quoted(
    train_here: Program, run_folder: Path, override: str, named: str
) -> None:
    assert train_here(override).is_refusal(named, sentences=False)
    assert not run_folder.exists()


def test_a_missing_file_is_named(train_here: Program, tmp_path: Path, run_folder: Path) -> None:
    assert train_here(f"data.path={tmp_path}/missing.txt").is_refusal(f"data.path={tmp_path}/missing.txt")
    assert nothing_was_trained(run_folder)


def test_an_empty_file_is_named(train_here: Program, text: Path, run_folder: Path) -> None:
    text.write_bytes(b"")
    assert train_here().is_refusal(str(text), "empty", "data.path")
    assert nothing_was_trained(run_folder)


def test_a_folder_without_text_is_named(train_here: Program, tmp_path: Path, run_folder: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"\x89PNG\0\0")
    (folder / "b.txt").write_bytes(b"")
    assert train_here(f"data.path={folder}").is_refusal(f"data.path={folder}", "1 empty", "1 binary")
    assert nothing_was_trained(run_folder)


def test_a_text_too_short_to_train_on_is_refused(train_here: Program, text: Path, run_folder: Path) -> None:
    text.write_text("a")
    assert train_here().is_refusal("the train split has 1 character", "give more text")
    assert nothing_was_trained(run_folder)


def test_a_text_shorter_than_one_window_is_trained_on_or_refused(train_here: Program, text: Path) -> None:
    text.write_text("a text of forty characters, not of 64...")
    outcome = train_here("data.bptt=64")
    assert outcome.status == 0 or outcome.is_refusal("data.bptt")


def test_an_output_folder_that_is_a_file_is_refused(train_here: Program, text: Path) -> None:
    before = text.read_bytes()
    assert train_here(f"hydra.run.dir={text}").is_refusal(str(text))
    assert text.read_bytes() == before


def test_a_folder_with_a_run_in_it_is_left_as_it_is(train_here: Program, run_folder: Path) -> None:
    for name in ("checkpoints/best.ckpt", "metrics.csv", "summary.json", "samples.txt", ".hydra/config.yaml"):
        (run_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (run_folder / name).write_text(f"precious {name}")
    before = contents(run_folder)
    assert train_here().is_refusal("already holds a run", "choose another hydra.run.dir")
    assert contents(run_folder) == before


def test_a_run_that_diverges_ends_with_one_sentence(train_here: Program) -> None:
    outcome = train_here("optimizer.lr=1e30", "data.bptt=8", "data.batch_size=4", "trainer.max_epochs=2")
    *warnings, error = outcome.err.splitlines()
    assert outcome.status == 2
    assert error.startswith("error: training diverged at step 101") and "optimizer.lr" in error
    assert len(warnings) == 1 and warnings[0].startswith("warning: no sample of epoch 1")  # not the end of the run


def test_a_small_run_works(train_here: Program, run_folder: Path) -> None:
    outcome = train_here()  # shows that the refusals above have no other cause
    assert (outcome.status, outcome.err) == (0, ""), outcome
    assert {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "summary.json"} <= contents(run_folder).keys()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--length=-1"], "--length=-1"),
        (["--temperature=-1"], "--temperature=-1"),
        (["--temperature=nan"], "--temperature=nan"),
        (["--temperature=inf"], "--temperature=inf"),
        (["--checkpoint=missing.ckpt"], "missing.ckpt"),
        (["--checkpoint=text.txt"], "text.txt cannot be opened safely"),
        (["--checkpoint=."], "give a run folder"),
    ],
)
def test_sample_refuses_what_cannot_work(
    here: Program, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = here("sample.py", *arguments)
    assert outcome.is_refusal(named)
    assert outcome.out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--length=abc"], ["--length: 'abc' must be a number"]),
        (["--unknown=nonsense"], ["--unknown: invalid choice", "--help lists the options"]),
        (["--seed=1.5"], ["--seed"]),
        (["--nonsense"], ["there is no option --nonsense: --help lists the options"]),
        (["--promt", "hello"], ["there is no option --promt: did you mean --prompt?"]),
        (
            ["once upon"],
            ["'once upon' belongs to no option", "a prompt is one argument in quotes, as in --prompt 'a text'"],
        ),
        ([""], ["a prompt is one argument"]),
        (["a\nb", "--foo"], ["there is no option --foo"]),
        (["conf"], ["for a model, write --checkpoint conf"]),
    ],
)
def test_sample_explains_its_options(here: Program, arguments: list[str], words: list[str]) -> None:
    outcome = here("sample.py", *arguments)
    assert outcome.is_refusal(*words) and outcome.out == ""
