"""What the command line accepts beyond Hydra's grammar, and options of Lightning's Trainer without a +."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

import charlm
from charlm.run.suggest import FLAGS, arguments, readable
from tests.helpers import SMALL
from tests.programs import environment, program

PATHS = st.text(st.characters(codec="utf-8", exclude_characters=",[]{}()\"'\n\r\0"), min_size=1).filter(str.strip)


@given(PATHS)
@example("Über dir/x y.md")
@example("~/notes")
@example("a#b=c")
@example("C:\\dir\\")
def test_any_path_reaches_the_option_as_it_is(path: str) -> None:
    """Values that Hydra reads by itself, such as numbers, are left to it."""
    (override,) = readable([f"data.path={path}"])
    value = OverridesParser.create().parse_override(override).value()
    assert override == f"data.path={path}" or value == path


def test_a_list_of_paths_is_quoted_part_by_part() -> None:
    (override,) = readable(["data.paths=[Über/a b.txt,plain.txt,x=y]"])
    assert OverridesParser.create().parse_override(override).value() == ["Über/a b.txt", "plain.txt", "x=y"]


@pytest.mark.parametrize("override", ["a.b=[ü,[é]]", "a.b={x: ü}", "a.b=ü,é", "a.b='x", "--help", "notes/", "=ü"])
def test_what_could_mean_something_else_is_left_alone(override: str) -> None:
    assert readable([override]) == [override]


def test_a_path_with_spaces_and_umlauts_works_as_typed(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "Über dir"
    folder.mkdir()
    (folder / "x y.md").write_text(text)
    done = program("train.py", "data=text", f"data.path={folder / 'x y.md'}", "data.bptt=8", *SMALL,
                   f"hydra.run.dir={tmp_path / 'läuft hier'}", env=environment(tmp_path))  # fmt: skip
    assert done.status == 0, done
    assert (tmp_path / "läuft hier/checkpoints/best.ckpt").is_file()
    done = program("train.py", f"resume={tmp_path / 'läuft hier'}", "trainer.max_epochs=3", env=environment(tmp_path))
    assert done.status == 0 and "epoch 3" in done.out, done


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("resume=ünï/run=1", ["there is no run at resume=ünï/run=1"]),
        ("data.path=${nope}", ["${nope}", "does not exist"]),
        ("data.path=a,ü", ["quote the value", "'a,ü'"]),
    ],
)
def test_no_words_from_inside_the_parser(override: str, words: list[str], tmp_path: Path) -> None:
    done = program("train.py", "data=text", override, env=environment(tmp_path))
    assert done.is_refusal(*words)
    for word in ("full_key", "object_type", "token", "mismatched", "Error executing"):
        assert word not in done.err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["optimizer.lr=0,001"], ["is two numbers: write optimizer.lr=0.001 with a decimal point", "add -m"]),
        (["seed=1,2"], ["seed=1,2 has several values: add -m to train once with each"]),
        (["model='gru lstm'"], ["there is no model=gru lstm: "]),
        (["data="], ["there is no data=: choose one of"]),
        (["checkpoint={every_minute: 1}"], ["checkpoint={…} has an option that is not set in conf/: python train.py"]),
        (["trainer.batch_size=3"], ["did you mean data.batch_size?"]),
        (["trainer.max_time=3"], ["must be DAYS:HOURS:MINUTES:SECONDS"]),
        (["callbacks=ema,early_stopping"], ["write 'callbacks=[ema,early_stopping]'"]),
        (["callbacks=[ema early_stopping]"], ["write 'callbacks=[ema,early_stopping]'"]),
        (["callbacks=[ema,foo]"], ["there is no callbacks=foo: choose one of"]),
        (["callbacks=[emma]"], ["there is no callbacks=emma: did you mean ema?"]),
        (["trainer.threads=many"], ["trainer.threads='many' must be an integer, or 'auto'"]),
        (["data.bptt=0"], ["data.bptt=0 must be at least 1, or 'auto'"]),
        (["data.path='a.txt"], ["begins with a quote (') that has no end"]),
        (["-help"], ["there is no flag -help", "as in model=gru", "--help"]),
        (["--foo"], ["there is no flag --foo", "--help"]),
        (["model=rnn,gru"], ["names several: choose one, or add -m"]),
        (["data.path", "a.txt"], ["data.path is not NAME=VALUE: write data.path=VALUE, without a space"]),
        (["data=text", "data.path=my", "texts"], ["texts is not NAME=VALUE", "'data.path=my texts/'"]),
        (["data=pyproject.toml"], ["is no config: for your own text, write data=text data.path=pyproject.toml"]),
        (["init_from="], ["init_from= is empty: give a run's folder, or a .ckpt file"]),
        (["parameter_groups.recurent.lr=1"], ["did you mean parameter_groups.recurrent.lr?"]),
        (["parameter_groups.rekurrent.frozen=true"], ["did you mean parameter_groups.recurrent.frozen?"]),
        (["model.size=3"], ["model.size is not set in conf/: write +model.size=VALUE to add it"]),
        (
            ["optimizer={lr: 1, nesterov: true}"],
            ["has an option that is not set", "+optimizer.NAME=VALUE"],
        ),
        (["schedule=constant", "schedule.scheduler.eta_min=0"], ["schedule=cosine, schedule=linear, "]),
        (["trainer.max_time=1h"], ["trainer.max_time='1h' must be DAYS:HOURS:MINUTES:SECONDS, as in 00:08:00:00"]),
        (["trainer.limit_val_batches=1.5"], ["must be an integer, or at most 1"]),
        (["data=text", "data.paths=a.txt"], ["data.paths='a.txt' must be a list in brackets"]),
        (["--optimizer.lr=3"], ["there is no flag --optimizer.lr", "as in optimizer.lr=3"]),
    ],
)
def test_the_advice_is_what_was_meant(given: list[str], words: list[str], tmp_path: Path) -> None:
    done = program("train.py", *given, env=environment(tmp_path))
    assert done.is_refusal(*words)


def test_hydras_own_flags_are_known() -> None:
    from hydra._internal.utils import get_args_parser

    assert set(FLAGS) == set(get_args_parser()._option_string_actions)
    assert arguments(["a=1", "-m", "b=-1", "--cfg=job"]) == ["-m", "a=1", "b=-1", "--cfg=job"]


def test_flags_mean_nothing_in_python(tmp_path: Path) -> None:
    with pytest.raises(charlm.UsageError, match="-m is for the command line: in Python, give overrides such as"):
        charlm.train("-m", "model=gru", folder=tmp_path / "run")
    with pytest.raises(charlm.UsageError, match="choose one, or call charlm.train once for each$"):
        charlm.train("model=rnn,gru", folder=tmp_path / "run")
    with pytest.raises(charlm.UsageError, match="takes one name; to train with several, call charlm.train once for"):
        charlm.train("model=[rnn,gru]", folder=tmp_path / "run")


def test_a_mistake_in_python_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for start in (charlm.train, charlm.lr_find, charlm.profile):
        with pytest.raises(charlm.UsageError):
            start("data=text", "data.path=nowhere")
    assert list(tmp_path.glob("runs/*")) == []


def test_a_folder_of_runs_that_leads_nowhere_is_reported(tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(tmp_path / "unmounted")
    done = program("train.py", "data=python_docs", cwd=tmp_path, env=environment(tmp_path))
    assert done.status == 2 and "runs" in done.err and "Traceback" not in done.err


def test_an_override_may_refer_to_another_option(tmp_path: Path) -> None:
    options = ["optimizer.weight_decay=${.lr}", "data=text", "data.path=nowhere"]
    assert program("train.py", *options, env=environment(tmp_path)).is_refusal("nowhere")


@pytest.mark.parametrize(
    ("option", "epochs"),
    [
        ("limit_train_batches=5", 2),
        ("limit_test_batches=1", 2),
        ("check_val_every_n_epoch=2", 2),
        ("val_check_interval=0.5", 2),
        ("deterministic=true", 2),
        ("benchmark=true", 2),
        ("detect_anomaly=true", 2),
        ("min_epochs=1", 2),
        ("max_steps=3", 1),
        ("max_time='00:01:00:00'", 2),
        ("fast_dev_run=true", 1),
    ],
)
def test_common_options_of_the_trainer_need_no_plus(option: str, epochs: int, text_file: Path, tmp_path: Path) -> None:
    overrides = ["data=text", f"data.path={text_file}", "data.bptt=8", "data.batch_size=8", *SMALL, "data.test=0.1"]
    result = charlm.train(*overrides, f"trainer.{option}", folder=tmp_path / "run")
    assert len(result.history) == epochs


@pytest.mark.parametrize("override", ["model=[gru,lstm]", "optimizer=[adam,sgd]", "experiment=[char3,irnn]", "data=[]"])
def test_a_list_where_one_name_is_taken_is_refused(override: str, tmp_path: Path) -> None:
    with pytest.raises(charlm.UsageError, match="takes one name"):
        charlm.train(override, folder=tmp_path / "run")
