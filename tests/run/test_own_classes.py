"""A user's own config may name any class, an exception in it becomes one sentence, and observers never stop a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

import charlm
from charlm.inference.language_model import LanguageModel
from charlm.models.recurrent import GRU
from charlm.text.corpus import Corpus
from charlm.text.sources import read
from tests.helpers import SMALL, run_train, summary
from tests.programs import environment, program


class Steps(pl.Callback):
    """A user's own callback."""

    seen = 0

    def on_train_batch_end(self, *arguments: Any) -> None:
        Steps.seen += 1


class Broken(pl.Callback):
    """A user's callback with a bug."""

    def on_train_batch_end(self, *arguments: Any) -> None:
        raise ZeroDivisionError("no batch is like another")


@pytest.fixture
def base(text_file: Path, tmp_path: Path) -> list[str]:
    steps = ["trainer.limit_train_batches=3", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    return ["data=text", f"data.path={text_file}", "data.bptt=8", *SMALL[:3], *steps, f"hydra.run.dir={tmp_path}/run"]


@pytest.mark.parametrize("name", ["RAdam", "NAdam", "Adagrad", "RMSprop", "Adafactor", "ASGD"])
def test_another_optimizer_needs_no_key_deleted(base: list[str], tmp_path: Path, name: str) -> None:
    run_train(*base, f"optimizer._target_=torch.optim.{name}")
    assert summary(tmp_path / "run")["steps"] == 3


def test_an_option_that_the_class_does_not_take_is_refused_if_the_user_gave_it(
    base: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_train(*base, "optimizer._target_=torch.optim.RAdam", "optimizer.fused=true")
    assert "optimizer.fused is not an option of RAdam, which takes lr, betas" in capsys.readouterr().err


def test_a_misspelt_key_of_the_users_own_yaml_is_refused_with_the_nearest(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "optimizer").mkdir()
    yaml = "_target_: torch.optim.AdamW\n_partial_: true\nlr: 1e-3\nweight_decy: 0.1\n"
    (tmp_path / "optimizer/mine.yaml").write_text(yaml)
    with pytest.raises(SystemExit):
        run_train(*base, f"hydra.searchpath=[file://{tmp_path}]", "optimizer=mine")
    sentence = "error: optimizer.weight_decy is not an option of AdamW: did you mean optimizer.weight_decay?\n"
    assert capsys.readouterr().err == sentence


def test_a_callback_of_the_users_own_package_needs_no_environment_variable(base: list[str]) -> None:
    Steps.seen = 0
    run_train(*base, f"+callbacks.mine._target_={__name__}.Steps")
    assert Steps.seen == 3


@pytest.mark.parametrize(
    "override",
    [
        "+callbacks.swa={_target_: pytorch_lightning.callbacks.StochasticWeightAveraging, swa_lrs: 0.01}",
        "+callbacks.save={_target_: pytorch_lightning.callbacks.ModelCheckpoint, monitor: val/nats, filename: mine}",
        "+callbacks.lr._target_=pytorch_lightning.callbacks.LearningRateMonitor",
        "+callbacks.stop={_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val/nats}",
    ],
)
def test_lightnings_callbacks(base: list[str], tmp_path: Path, override: str) -> None:
    run_train(*base, "logger=csv", override)
    assert summary(tmp_path / "run")["steps"] == 3


def test_a_callback_that_raises_is_named(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_train(*base, f"+callbacks.mine._target_={__name__}.Broken")
    assert "error: callbacks.mine: no batch is like another" in capsys.readouterr().err


def test_a_monitor_that_does_not_exist_lists_those_that_do(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    stop = "+callbacks.stop={_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val_loss}"
    with pytest.raises(SystemExit):
        run_train(*base, stop)
    error = capsys.readouterr().err
    assert error.startswith("error: callbacks.stop: ") and "val_loss" in error and "`val/nats`" in error


def test_the_profilers_report_is_shown(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run_train(*base, "+trainer.profiler=simple")
    assert "run_training_batch" in capsys.readouterr().out


def test_a_sample_that_cannot_be_written_does_not_stop_the_run(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(self: LanguageModel, *arguments: Any, **options: Any) -> str:
        raise OverflowError("the model's output is not finite")

    monkeypatch.setattr(LanguageModel, "generate", fails)
    run_train(*base)
    assert summary(tmp_path / "run")["steps"] == 3
    assert capsys.readouterr().err.count("no sample of epoch 1: the model's output is not finite") == 1


def test_a_terminal_that_cannot_show_the_text_does_not_stop_the_run(tmp_path: Path) -> None:
    text = tmp_path / "日本語.txt"
    text.write_text("吾輩は猫である。名前はまだ無い。\n" * 60, encoding="utf-8")
    outcome = program(
        "train.py",
        *("data=text", f"data.path='{text}'", "data.bptt=8", *SMALL, f"hydra.run.dir={tmp_path}/run"),
        env={**environment(tmp_path), "PYTHONIOENCODING": "cp1252"},
    )
    assert outcome.status == 0, outcome
    assert summary(tmp_path / "run")["epochs"] == 2


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("lr=0.01", "lr is not an option: did you mean optimizer.lr?"),
        ("+modle=lstm", "modle is not an option: did you mean model?"),
        ("optimizer.lrr=0.01", "optimizer.lrr is not an option: did you mean optimizer.lr?"),
        ("model.hiden_size=8", "model.hiden_size is not an option: did you mean model.hidden_size?"),
    ],
)
def test_an_option_that_does_not_exist_is_refused_with_the_nearest(
    base: list[str], capsys: pytest.CaptureFixture[str], override: str, sentence: str
) -> None:
    with pytest.raises(SystemExit):
        run_train(*base, override)
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_another_class_drops_the_options_of_the_old_one_however_it_was_named(base: list[str], tmp_path: Path) -> None:
    run_train(*base, "optimizer={_target_: torch.optim.Adadelta, _partial_: true}")
    assert summary(tmp_path / "run")["steps"] == 3


class Measured(GRU):
    """A constructor that reads a tensor, as some initialisations do."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.scales = [value.item() for value in torch.linspace(0, 0.1, 3)]


class Frozen(GRU):
    """A frozen parameter that is not finite, such as an attention mask."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.mask = torch.nn.Parameter(torch.tensor([0.0, -math.inf]), requires_grad=False)


@pytest.mark.parametrize("name", ["Measured", "Frozen"])
def test_a_legitimate_network_trains_and_opens(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run_train(*base, f"model._target_={__name__}.{name}")
    assert "CHARLM_TRUST=tests python sample.py --checkpoint" in capsys.readouterr().out
    assert len(charlm.load(tmp_path / "run", trust=["tests"]).generate("a", 5)) == 5


def test_a_scheduler_that_follows_the_loss(base: list[str], tmp_path: Path) -> None:
    plateau = "schedule.scheduler={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, _partial_: true}"
    run_train(*base, plateau)
    assert summary(tmp_path / "run")["steps"] == 3


@pytest.mark.parametrize("limit", ["+trainer.check_val_every_n_epoch=5", "+trainer.max_steps=2"])
def test_a_run_that_ends_before_its_first_validation_has_a_result(base: list[str], tmp_path: Path, limit: str) -> None:
    value = run_train(*base, "data.test=0.1", limit)
    made = summary(tmp_path / "run")
    assert value == made["best_train_nats"] and math.isfinite(made["test_nats"])
    assert len(charlm.load(made["best_checkpoint"]).generate("a", 5)) == 5


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trainer.limit_train_batches=0.001", "error: trainer: "),
        ("+trainer.callbacks=[]", "error: trainer.callbacks is not an option"),
        ("+trainer.max_step=5", "error: trainer.max_step is not an option: did you mean trainer.max_steps?"),
        ("+data.corpus.foo=1", "error: data.corpus.foo is not an option of read, which takes path, encoding"),
        (
            "model.identity=true",
            "error: model.identity is not set by the chosen configs: model=irnn, model=keras_char3, ",
        ),
        ("data=mine.txt", "error: there is no data=mine.txt: choose one of mix, nietzsche"),
        ("model=lstmm", "error: there is no model=lstmm: did you mean lstm?"),
        ("mine.txt", "error: mine.txt is not NAME=VALUE: for a text, write data=text data.path=mine.txt"),
        (
            "data.path=my (1).txt",
            """error: data.path=my (1).txt cannot be read: quote the value, as in "data.path='my""",
        ),
        (
            "data.path=a,b.txt",
            "error: data.path=a,b.txt has several values: add -m to train once with each, or quote a text with a "
            """comma, as in "data.path='a,b.txt'\"""",
        ),
        ("data=nietzsche", "error: data.path="),
        ("+model={1: 2}", "error: model.1=1 must be text"),
        ("optimizer._target_=torch.optim.Radam", "error: optimizer._target_='torch.optim.Radam' cannot be imported: "),
        ("+data.bptt=8", "error: data.bptt is set in conf/: leave out the +"),
        ("optimizer.amsgrad=true", "error: optimizer.amsgrad is not set in conf/: write +optimizer.amsgrad=VALUE"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    base: list[str], capsys: pytest.CaptureFixture[str], override: str, sentence: str
) -> None:
    with pytest.raises(SystemExit):
        run_train(*base, override)
    error = capsys.readouterr().err
    assert error.startswith(sentence) and error.count("\n") == 1


def read_file(file: str) -> Corpus:
    """A user's own corpus, whose argument has another name."""
    return read(file)


def test_a_corpus_of_the_users_own_may_read_data_path_as_it_likes(base: list[str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.yaml").write_text(
        f"name: mine\ncorpus: {{_target_: {__name__}.read_file, file: '${{data.path}}'}}\nbatch_size: 4\nbptt: 8\n"
    )
    run_train(*base, f"hydra.searchpath=[file://{tmp_path}]", "data=mine")
    assert summary(tmp_path / "run")["corpus"] == "mine"


def test_another_logger_needs_no_key_deleted(base: list[str], tmp_path: Path) -> None:
    logger = "logger._target_=pytorch_lightning.loggers.CSVLogger"
    run_train(*base, "logger=csv", logger, f"+logger.save_dir={tmp_path}/mine")
    assert list((tmp_path / "mine").rglob("metrics.csv"))


def test_integer_keys_in_a_config(base: list[str], tmp_path: Path) -> None:
    target = "pytorch_lightning.callbacks.GradientAccumulationScheduler"
    run_train(*base, f"+callbacks.more={{_target_: {target}, scheduling: {{0: 3}}}}")
    assert summary(tmp_path / "run")["steps"] == 1
