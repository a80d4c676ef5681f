"""The ladder: its experiments, command, table, figures and errors."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from benchmarks.lesson import __main__ as ladder
from benchmarks.lesson.lesson import LADDER, STEPS, Entry
from benchmarks.lesson.measure import figures
from benchmarks.lesson.runs import command, find_run, place
from benchmarks.lesson.table import difference, numbers, render
from charlm.errors import UsageError
from charlm.run.build import fill_in_lengths
from charlm.run.settings import check_settings
from tests.helpers import ROOT, summary

# An artificial text instead of Nietzsche, small networks, one epoch.
TINY = ("trainer.max_epochs=1", "trainer.limit_train_batches=4", "trainer.limit_val_batches=1")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    text = tmp_path / "text.txt"
    text.write_text("for those part of queens and then? Is the phi. Try apples\n" * 120)
    corpus = f"data.corpus={{_target_: charlm.text.sources.read, path: {text}}}"
    return (*TINY, "model.hidden_size=8", "~data.corpus", f"+{corpus}", "data.val=0.3")


def run(folder: Path, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ladder", f"--folder={folder}", *arguments])
        ladder.main()


def test_every_row_of_the_lesson_is_there_with_its_recipe() -> None:
    assert {int(entry.row.split(",")[0]) for entry in LADDER} == set(range(1, 21))
    recipes = {path.stem for path in (ROOT / "conf/experiment").glob("*.yaml")} - {"search_lstm"}
    assert {entry.experiment for entry in LADDER} == recipes == set(SETTINGS)
    assert len({entry.row for entry in LADDER}) == len(LADDER)


@pytest.mark.parametrize("entry", LADDER, ids=lambda entry: entry.row)
def test_each_recipe_fits_its_line(entry: Entry) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [f"experiment={entry.experiment}", *entry.overrides])
    epochs = entry.epochs or config.trainer.max_epochs
    if entry.split != STEPS and entry.figures:
        assert len(entry.figures) == epochs
    if entry.lesson and "epochs" in entry.lesson and "about" not in entry.lesson:
        assert str(epochs) in entry.lesson
    assert entry.leaky == (config.data.split == "random" and config.data.stride < config.data.bptt)
    assert (config.data.val == 0) == (entry.split != "val")
    assert config.data.name == "nietzsche"
    for prompt, answer in entry.positions.items():
        assert len(prompt) == len(answer)
    for prompt in entry.next:
        assert config.data.mode == "streams" or len(prompt) == config.data.bptt
    if entry.scale != 1:
        assert entry.scale == config.data.bptt and config.objective.reduction == "sum"


# The lesson's settings, independent of conf/: batch size, window, stride (0: streams), learning rate in each epoch.
SETTINGS = {
    "keras_char3": (64, 3, 3, [1e-3] * 4),
    "char3": (512, 3, 3, [1e-2, 1e-3]),
    "keras_loop": (64, 8, 8, [1e-3] * 12),
    "keras_rnn": (64, 8, 8, [1e-3] * 8),
    "char_loop": (512, 8, 1, [1e-2, 1e-3]),
    "char_loop_concat": (512, 8, 1, [1e-3, 1e-4]),
    "char_rnn": (512, 8, 1, [1e-3] * 4 + [1e-4] * 2),
    "char_seq_rnn": (512, 8, 8, [1e-3] * 4 + [1e-4]),
    "keras_seq_rnn": (64, 8, 8, [1e-3] * 8),
    "keras_seq_loop": (64, 8, 8, [1e-3] * 12),
    "irnn": (512, 8, 8, [1e-2] * 4 + [1e-3] * 4),
    "keras_one_hot": (64, 8, 8, [1e-3] * 8),
    "stateful_rnn": (64, 8, 0, [1e-3] * 4 + [1e-4] * 4),
    "stateful_rnn_cell": (64, 8, 0, [1e-3] * 4),
    "stateful_gru": (64, 8, 0, [1e-3] * 6 + [1e-4] * 3),
    "stateful_gru_cell": (64, 8, 0, [1e-3] * 6 + [1e-4] * 3),
    "stateful_lstm": (64, 8, 0, [1e-2] * 2),
    "stateful_lstm_sgdr": (64, 8, 0, None),
    "keras_stateful_lstm": (64, 8, 0, [1e-3] * 4 + [1e-4] * 8),
    "writer": (64, 8, 0, [1e-3] * 13),
    "scan_relu": (1, 8, 8, [1e-2]),
    "scan_tanh": (1, 25, 25, [1e-2] * 10),
}
MORE = {  # other settings that differ from the defaults
    "stateful_lstm": {
        "optimizer.weight_decay": 1e-5,
        "model.hidden_size": 512,
        "model.layers": 2,
        "model.dropout": 0.5,
    },
    "stateful_lstm_sgdr": {
        "optimizer.weight_decay": 1e-5,
        "model.hidden_size": 512,
        "schedule.scheduler.cycle_mult": 2,
    },
    "keras_one_hot": {"model.embedding_size": None},
    "scan_relu": {"data.shuffle": False, "objective.reduction": "sum"},
    "scan_tanh": {
        "data.shuffle": False,
        "data.train": 1000,
        "objective.l2": 0.01,
        "trainer.gradient_clip_val": 5.0,
        "trainer.gradient_clip_algorithm": "value",
        "model.hidden_size": 100,
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_recipe_has_the_lessons_settings(name: str) -> None:
    batch_size, bptt, stride, rates = SETTINGS[name]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [f"experiment={name}"])
    streams = config.data.mode == "streams"
    assert (config.data.batch_size, config.data.bptt, 0 if streams else config.data.stride) == (
        batch_size,
        bptt,
        stride,
    )
    assert config.optimizer._target_ == ("torch.optim.SGD" if "scan" in name else "torch.optim.Adam")
    assert config.data.lowercase == (config.data.min_freq == 3) == (name.startswith("stateful"))
    for key, value in MORE.get(name, {}).items():
        assert OmegaConf.select(config, key) == value, key
    if rates is None:
        return
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.optimizer.lr)
    settings = check_settings(OmegaConf.to_container(config, resolve=True))
    made = instantiate(fill_in_lengths(settings.schedule, settings.trainer.max_epochs, 1).scheduler)
    scheduler = made and made(optimizer)
    found = []
    for _ in range(config.trainer.max_epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler:
            scheduler.step()
    assert found == pytest.approx(rates)


def test_rows_run_once_and_the_table_keeps_what_it_has(tiny: tuple[str, ...], tmp_path: Path) -> None:
    folder, page = tmp_path / "runs", tmp_path / "runs/ladder.md"
    run(folder, "--rows", "2", *tiny)
    entry = LADDER[1]
    written = place(entry, folder, list(tiny)) / "summary.json"
    before = written.stat().st_mtime_ns
    run(folder, "--rows", "2,5", *tiny)
    assert written.stat().st_mtime_ns == before
    assert "`python train.py experiment=char3 trainer.max_epochs=1 " in page.read_text()
    record = json.loads((folder / "ladder.json").read_text())
    assert set(record) == {"2", "5"}
    loop = place(next(e for e in LADDER if e.row == "5"), folder, list(tiny))
    with (loop / "metrics.csv").open() as file:
        losses = [float(row["val_nats"]) for row in csv.DictReader(file)]
    assert record["5"]["ours"] == losses
    assert [answer[:2] for answer in record["2"]["answers"]] == [["y. ", "T"], ["ppl", "e"], [" th", "e"], ["and", " "]]
    assert "not run yet" in page.read_text()
    assert record["5"]["machine"] == summary(loop)["machine"]
    assert re.search("threads?, torch", page.read_text())
    run(folder, "--rows", "5", *tiny, "seed=1")  # another command gets another folder
    assert (loop / "summary.json").is_file()
    assert summary(place(next(e for e in LADDER if e.row == "5"), folder, [*tiny, "seed=1"]))["seed"] == 1


def test_an_unfinished_row_is_run_again_and_a_finished_one_never_deleted(tiny: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    row = place(next(e for e in LADDER if e.row == "5"), folder, list(tiny))
    (row / "checkpoints").mkdir(parents=True)
    (row / "metrics.csv").write_text("epoch\n1\n")
    with pytest.raises(UsageError, match="holds something else"):  # nothing says that the ladder made it
        run(folder, "--rows", "5", *tiny)
    assert (row / "metrics.csv").is_file()
    (row / ".hydra").mkdir()
    (row / ".hydra/overrides.yaml").write_text("".join(f"- '{o}'\n" for o in command(LADDER[4], list(tiny))))
    run(folder, "--rows", "5", *tiny)
    assert (row / "summary.json").is_file()
    (row / ".hydra/overrides.yaml").write_text("- experiment=other\n")
    with pytest.raises(UsageError, match="holds something else"):
        run(folder, "--rows", "5", *tiny)
    assert (row / "summary.json").is_file()


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "ladder.json").write_text("{")
    with pytest.raises(UsageError, match="ladder.json is damaged or not a ladder's: move it away"):
        run(tmp_path, "--rows", "5", "seed=1")


@pytest.mark.parametrize("rows", ["21", "21 ,5", "5, 21"])
def test_the_oracle_is_a_row(rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = {"command": "c", "difference": {"RNN": 1e-16}, "minutes": 0.1, "machine": "m"}
    monkeypatch.setattr(ladder, "oracle", lambda: result)
    monkeypatch.setattr(ladder, "chosen", lambda asked, long: [])
    run(tmp_path, "--rows", rows, f"--output={tmp_path}/t.md")
    assert json.loads((tmp_path / "t.json").read_text()) == {"21": result}
    assert "largest difference: RNN 1e-16" in (tmp_path / "t.md").read_text()


def test_a_row_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="row 5 ended with status 2: error: .*hidden_size.*: .*char_loop.*log"):
        run(tmp_path, "--rows", "5", "model.hidden_size=0", "data.val=0.2")


@pytest.mark.parametrize(("rows", "named"), [("22", "'22'"), ("x", "'x'"), ("", "''"), ("5,,6", "''"), ("0", "'0'")])
def test_rows_that_are_not_there_are_named(rows: str, named: str) -> None:
    with pytest.raises(UsageError, match=f"there is no row {named}"):
        ladder.numbers(rows)


def test_rows_are_chosen_by_their_number() -> None:
    assert [entry.row for entry in ladder.chosen(ladder.numbers("14, 9"), False)] == [
        "9",
        "9, functional",
        "14",
        "14, cell",
    ]
    assert [entry.row for entry in ladder.chosen({"16"}, True)] == ["16, long", "16"]
    assert len(ladder.chosen(ladder.numbers(None), False)) == len(LADDER) - 1


def test_the_shorter_row_is_read_from_the_longer_run(tmp_path: Path) -> None:
    short, long = (next(e for e in LADDER if e.row == row) for row in ("16", "16, long"))
    run = place(long, tmp_path, [])
    (run / ".hydra").mkdir(parents=True)
    (run / "summary.json").write_text("{}")
    (run / ".hydra/overrides.yaml").write_text("".join(f"- {o}\n" for o in command(long, [])))
    assert find_run(short, tmp_path, []) == run
    assert find_run(long, tmp_path, []) == run
    assert find_run(short, tmp_path, ["seed=1"]) is None
    assert find_run(next(e for e in LADDER if e.row == "15"), tmp_path, []) is None


def entry(**options: object) -> Entry:
    return Entry("5", "s", "char_loop", "val", **{"figures": (2.0, 1.5), **options})


@pytest.mark.parametrize(
    ("ours", "options", "shown"),
    [
        ([1.9, 1.4], {}, "-0.100"),
        ([1.9, 1.53], {}, "+0.030"),
        ([1.9, 1.54], {}, "**+0.040**"),
        ([16.0, 12.8], {"scale": 8.0, "figures": (16.0, 12.0)}, "**+0.100**"),
        ([1.9, 1.7], {"target": 1.6}, "**+0.100**"),
        ([1.9, 1.7], {"comparable": False}, "–"),
        ([1.9, 1.7], {"figures": ()}, "–"),
    ],
)
def test_the_difference_is_ours_minus_theirs_per_character(ours: list[float], options: dict, shown: str) -> None:
    assert difference(entry(**options), ours) == shown


def test_long_lists_are_thinned() -> None:
    assert numbers((1.0, 2.0, 3.0, 4.0), 1) == "1.000, 2.000, 3.000, 4.000"
    assert numbers([float(i) for i in range(1, 11)], 5, 1) == "1.0, 5.0, 10.0"
    assert numbers([1.0, 2.0], 7, 1) == "1.0, 2.0"


def test_a_page_without_results_has_every_row() -> None:
    page = render({})
    for line in LADDER:
        assert f"| {line.row} | " in page
    assert "| 21 | " in page
    cells = [line.count(" | ") for line in page.splitlines() if line.startswith("| ") and " | " in line]
    assert len(set(cells[: len(LADDER) + 3])) == 1


def test_figures_of_steps_and_penalties(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    steps = [{"train/nats_step": v, "train/penalty": ""} for v in (4, 3, 2, 1)]
    with (tmp_path / "csv/metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["train/nats_step", "train/penalty"])
        writer.writeheader()
        writer.writerows(
            [*steps, {"train/nats_step": "", "train/penalty": 0.5}, {"train/nats_step": "", "train/penalty": 0.25}]
        )
    two = [{"train_nats": "2"}, {"train_nats": "1"}]
    assert figures(entry_of(STEPS), tmp_path, two) == [3.0, 1.0]  # the last one of each epoch
    assert figures(entry_of(STEPS, scale=8.0), tmp_path, two[:1]) == [32.0, 24.0, 16.0, 8.0]
    assert figures(entry_of("train", scale=25.0), tmp_path, two) == [50.5, 25.25]


def entry_of(split: str, **options: object) -> Entry:
    return Entry("x", "s", "e", split, **options)


def test_the_committed_table_is_made_from_the_committed_figures() -> None:
    record = json.loads((ROOT / "docs/ladder.json").read_text())
    assert (ROOT / "docs/ladder.md").read_text(encoding="utf-8") == render(record)
    assert {entry.row for entry in LADDER if not entry.long} | {"21"} <= set(record)


@pytest.mark.parametrize(
    ("content", "arguments", "named"),
    [
        ('{"name": "my package"}', [], "is damaged or not a ladder's"),
        ("[1]", [], "is damaged or not a ladder's"),
        ('{"5": 3}', [], "is damaged or not a ladder's"),
        (None, ["experiment=char3"], "experiment=char3: the ladder sets experiment"),
        (None, ["hydra.run.dir=x"], "the ladder sets experiment, logger and hydra"),
        (None, ["--output=x.json"], "--output x.json must be a Markdown file"),
        (None, ["--output=/"], "must be a Markdown file"),
        (None, ["--output=/proc/x/y.md"], "/proc/x cannot be made"),
    ],
)
def test_nothing_of_the_users_is_overwritten(
    content: str | None, arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "train", lambda *_: pytest.fail("it was trained"))
    if content is not None:
        (tmp_path / "package.json").write_text(content)
        arguments = [f"--output={tmp_path}/package.md"]
    with pytest.raises(UsageError, match=named):
        run(tmp_path / "runs", "--rows", "5", *arguments)
    assert content is None or (tmp_path / "package.json").read_text() == content


def test_a_second_ladder_in_the_folder_is_refused(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".ladder.lock"), pytest.raises(UsageError, match="another ladder is running"):
        run(tmp_path, "--rows", "5", "seed=1")


def test_odd_places_and_relative_paths_work(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [option.replace(f"{tmp_path}/", "") for option in tiny]
    folder = Path("sp ace 'q\" {x}, y=1 $")
    run(folder, "--rows", "2", *overrides)
    assert (place(LADDER[1], folder, overrides) / "summary.json").is_file()


def test_a_run_without_the_compared_loss_says_so(tiny: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="row 5 compares the val loss, and this run has none"):
        run(tmp_path, "--rows", "5", *(option for option in tiny if "data.val" not in option), "data.val=0.0")


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_the_row_and_nothing_is_left_running(
    tiny: tuple[str, ...], tmp_path: Path, stop: signal.Signals
) -> None:
    overrides = [o for o in tiny if "max_epochs" not in o and "limit_train" not in o]
    command = [sys.executable, "-m", "benchmarks.lesson", "--rows", "5", "--folder", str(tmp_path / "r"), *overrides]
    started = subprocess.Popen(
        [*command, "trainer.max_epochs=100000"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Background jobs of a shell, as this test run may be one, ignore SIGINT.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    row = next(e for e in LADDER if e.row == "5")
    metrics = place(row, tmp_path / "r", [*overrides, "trainer.max_epochs=100000"]) / "metrics.csv"
    with started as process:
        try:
            deadline = time.monotonic() + 120
            while not metrics.is_file() and time.monotonic() < deadline:
                time.sleep(0.1)
            process.send_signal(stop)
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 130 and errors.startswith("interrupted")
            size = metrics.stat().st_size
            time.sleep(2)
            assert metrics.stat().st_size == size
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
