"""Loss curves as pictures: what is drawn, when, and ``python -m charlm.plot``."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import yaml
from matplotlib.figure import Figure
from matplotlib.image import imread

from charlm import curves
from charlm.checkpoint.storage import Store
from charlm.plot import main
from charlm.training.callbacks import picture
from charlm.training.callbacks.history import COLUMNS
from charlm.training.callbacks.picture import LossPicture
from tests.helpers import ROOT, SMALL, run_train
from tests.programs import environment


def rows(epochs: int, **columns: Any) -> list[dict[str, Any]]:
    made = [
        {"epoch": e, "train_nats": 1 + 1 / e, "val_nats": 1.5 + abs(e - 3) / 10, "learning_rate": 0.1 / e}
        for e in range(1, epochs + 1)
    ]
    return [{**row, **columns} for row in made]


def write_run(folder: Path, table: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    lines = [",".join(COLUMNS)]
    for row in table:
        lines.append(",".join("" if row.get(name) is None else str(row[name]) for name in COLUMNS))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is rendered."""
    figures: list[Figure] = []
    render = curves.rendered

    def keep(figure: Figure, format: str) -> bytes:
        figures.append(figure)
        return render(figure, format)

    monkeypatch.setattr(curves, "rendered", keep)
    return figures


def lines(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].lines}


def test_a_picture_has_both_losses_the_rate_and_the_best_epoch(drawn: list[Figure]) -> None:
    rates = [(0.0, 0.1), (2.5, 0.3), (5.0, 0.0)]
    curves.picture(rows(5), "a_run", rates)
    shown = lines(drawn[0])
    assert shown["training"] == ([1, 2, 3, 4, 5], [1 + 1 / e for e in range(1, 6)])
    assert shown["validation"][1] == [row["val_nats"] for row in rows(5)]
    assert shown["best: 1.5000 in epoch 3"] == ([3], [1.5])
    line = drawn[0].axes[1].lines[0]
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == rates
    curves.picture(rows(1), "one_epoch", [(0.0, 0.1), (0.9, 0.2)])
    assert drawn[1].axes[1].get_xlim() == (0, 1.5)
    assert drawn[0].axes[0].get_title() == "a_run"


def test_missing_values_are_left_out_and_the_rest_is_drawn(drawn: list[Figure]) -> None:
    table = rows(4)
    table[0]["train_nats"], table[1]["val_nats"], table[2]["val_nats"] = math.nan, None, math.inf
    curves.picture(table)
    assert lines(drawn[0])["training"][0] == [2, 3, 4]
    assert lines(drawn[0])["validation"][0] == [1, 4]
    assert "best: 1.6000 in epoch 4" in lines(drawn[0])


@pytest.mark.parametrize(
    "table",
    [[], rows(1), rows(3, val_nats=None), rows(3, train_nats=math.nan, val_nats=math.nan), rows(2, learning_rate=0.0)],
    ids=["none", "one", "no validation", "nan", "no rate"],
)
def test_any_rows_can_be_drawn(table: list[dict[str, Any]]) -> None:
    for rates in ([], [(0.0, 0.0)], [(0.0, 0.1), (1.0, 0.2)]):
        assert curves.picture(table, rates=rates).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["日本語 مرحبا 🙂", "$x_{", "n" * 500, "two\nlines", "_hidden", "b\udcc3\udcbc.txt"])
def test_any_name_is_shown_as_it_is(name: str, drawn: list[Figure], capfd: pytest.CaptureFixture[str]) -> None:
    """A formula or a missing glyph would raise or warn; pytest makes every warning an error."""
    data = curves.picture(rows(2), name)
    curves.comparison({name: rows(2), "other": rows(3)}, {name: name})
    assert struct.unpack(">II", data[16:24]) == (770, 506)  # however long the name
    title, legend = drawn[0].axes[0].get_title(), drawn[1].axes[0].get_legend()
    assert title == curves.shortened(name, 55) and len(title) <= 55
    assert any(curves.shortened(name, curves.WIDEST) in label.get_text() for label in legend.get_texts())
    assert capfd.readouterr() == ("", "")


def test_drawing_leaves_the_users_matplotlib_alone(tmp_path: Path) -> None:
    """It works without a screen, chooses no backend, and uses no style that the user has set."""
    script = (
        "import matplotlib, sys; matplotlib.rcParams['lines.linewidth'] = 9; matplotlib.rcParams['text.usetex'] = True;"
        "from charlm import curves; curves.picture([{'epoch': 1, 'train_nats': 1.0, 'val_nats': 1.0, "
        "'learning_rate': 1.0}], 'a');"
        "assert matplotlib.rcParams['lines.linewidth'] == 9 and matplotlib.rcParams['text.usetex'];"
        "assert 'matplotlib.pyplot' not in sys.modules;"
        "assert matplotlib.get_backend(auto_select=False) is None"
    )
    env = {k: v for k, v in environment(tmp_path).items() if k not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, check=True, timeout=60)


def test_matplotlib_is_loaded_only_to_draw() -> None:
    script = "import sys, charlm.plot; assert not {'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)


def test_several_runs_are_listed_from_the_best_to_the_worst(drawn: list[Figure]) -> None:
    worse = [{**row, "val_nats": row["val_nats"] + 1} for row in rows(4)]
    curves.comparison({"worse": worse, "_best": rows(4), "none": rows(4, train_nats=0.5, val_nats=None)}, {})
    texts = [label.get_text() for label in drawn[0].axes[0].get_legend().get_texts()]
    assert texts == ["1.5000  _best", "2.5000  worse", "0.5000  none  (training loss)"]


def test_a_long_list_of_runs_keeps_a_legend_that_fits(drawn: list[Figure]) -> None:
    runs = {f"run-{n:03}": rows(3, train_nats=float(n + 1)) for n in range(200)}
    data = curves.comparison(runs, dict.fromkeys(runs, "seed=1 " * 20))
    legend = drawn[0].axes[0].get_legend()
    assert len(drawn[0].axes[0].lines) == 200
    assert len(legend.get_texts()) == curves.NAMED
    assert "200" in legend.get_title().get_text()
    width, height = struct.unpack(">II", data[16:24])
    assert legend.get_window_extent().height < height < 2200 and legend.get_window_extent().x1 <= width


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The callback with a clock that is set by hand; drawing takes 0.1 s on it."""
    clock = types.SimpleNamespace(now=0.0, drawn=[])

    def draw(table: list[dict[str, Any]], *_: object) -> bytes:
        clock.now += 0.1
        clock.drawn.append((clock.now, len(table)))
        return b"png"

    monkeypatch.setattr(picture, "picture", draw)
    monkeypatch.setattr(picture.time, "monotonic", lambda: clock.now)
    history: Any = types.SimpleNamespace(rows=[])
    callback = LossPicture(tmp_path / "loss.png", history, Store(pytest.fail))
    return callback, history, clock


def test_drawing_takes_five_percent_of_the_time_at_most_and_the_end_is_always_drawn(watched: Any) -> None:
    callback, history, clock = watched
    trainer: Any = None
    callback.on_train_start(trainer, trainer)
    for epoch in range(1, 301):
        clock.now += 0.3
        history.rows.append({"epoch": epoch})
        callback.on_train_epoch_end(trainer, trainer)
    during = len(clock.drawn)
    assert 30 <= during <= 0.05 * clock.now / 0.1
    callback.on_train_end(trainer, trainer)
    assert clock.drawn[-1][1] == 300
    assert callback.path.read_bytes() == b"png"


def test_an_interrupt_draws_and_nothing_is_drawn_twice(watched: Any) -> None:
    callback, history, clock = watched
    trainer: Any = None
    callback.on_train_start(trainer, trainer)
    history.rows.append({"epoch": 1})
    callback.on_train_epoch_end(trainer, trainer)
    assert not clock.drawn
    callback.on_exception(trainer, trainer, KeyboardInterrupt())
    callback.on_train_end(trainer, trainer)
    assert len(clock.drawn) == 1


def test_a_picture_that_cannot_be_drawn_is_reported_once(
    watched: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    callback, history, _ = watched

    def fail(*_: Any) -> bytes:
        raise RuntimeError("no fonts here")

    monkeypatch.setattr(picture, "picture", fail)
    for _ in range(3):
        history.rows.append({})
        callback.on_train_end(None, None)
    assert capsys.readouterr().err == "warning: no loss.png: no fonts here\n"


def test_a_notebook_shows_one_picture_and_updates_it(watched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from IPython import display as display_module

    callback, history, _ = watched
    shown: list[bytes] = []
    handle = types.SimpleNamespace(update=lambda image: shown.append(image.data))

    def display(image: Any, display_id: bool) -> Any:
        assert display_id
        shown.append(b"first")
        return handle

    monkeypatch.setattr(picture, "in_notebook", lambda: True)
    monkeypatch.setattr(display_module, "display", display)
    callback.on_train_start(None, None)
    for _ in range(2):
        history.rows.append({})
        callback.on_train_end(None, None)
    assert shown == [b"first", b"png"]


def test_every_run_has_its_picture(text_file: Path, tmp_path: Path, drawn: list[Figure]) -> None:
    run_train(*SMALL, "data=text", f"data.path={text_file}", "data.bptt=8", f"hydra.run.dir={tmp_path}/run")
    image = imread(tmp_path / "run/loss.png")
    assert image.shape == (506, 770, 4)
    written = curves.read_rows(tmp_path / "run/metrics.csv")
    assert np.allclose(lines(drawn[-1])["validation"][1], [row["val_nats"] for row in written])


@pytest.mark.parametrize("schedule", ["one_cycle", "constant"])
def test_the_learning_rate_is_drawn_within_an_epoch(
    schedule: str, text_file: Path, tmp_path: Path, drawn: list[Figure]
) -> None:
    """Against what the optimiser used at every step, as `HeardRates` heard it."""
    HeardRates.heard.clear()
    run_train(
        *(*SMALL, "data=text", f"data.path={text_file}", "data.bptt=8", f"hydra.run.dir={tmp_path}/run"),
        *(f"schedule={schedule}", "+callbacks.heard._target_=tests.test_plot.HeardRates", "trainer.max_epochs=2"),
    )
    line = drawn[-1].axes[1].lines[0]
    points = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert points.items() <= HeardRates.heard.items()
    assert len(points) == len(HeardRates.heard)
    assert min(points) == 0 and 1 < max(points) < 2
    begin, end = drawn[-1].axes[1].get_xlim()
    assert begin <= 0 and end >= max(points)


class HeardRates(pl.Callback):
    heard: ClassVar[dict[float, float]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        epoch = trainer.current_epoch + batch_idx / trainer.num_training_batches
        self.heard[epoch] = trainer.optimizers[0].param_groups[0]["lr"]


def test_many_learning_rates_are_thinned_out_evenly() -> None:
    """A triangle keeps its peak, whatever the number of epochs."""
    callback = LossPicture(Path("loss.png"), types.SimpleNamespace(rows=[]), Store(pytest.fail))
    for epoch in range(1000):
        for batch in range(10):
            rate = {"lr": min(epoch + batch / 10, 1000 - epoch - batch / 10)}
            optimizer = types.SimpleNamespace(param_groups=[rate])
            trainer: Any = types.SimpleNamespace(current_epoch=epoch, num_training_batches=10, optimizers=[optimizer])
            callback.on_train_batch_start(trainer, trainer, None, batch)
    epochs, rates = zip(*callback.rates, strict=True)
    assert picture.MOST / 2 <= len(epochs) <= picture.MOST
    assert np.allclose(np.diff(epochs), epochs[1]) and epochs[0] == 0 and epochs[-1] > 990
    assert max(rates) > 490
    again = LossPicture(callback.path, callback.history, callback.store)
    again.load_state_dict(callback.state_dict())
    assert again.state_dict() == callback.state_dict()


def test_an_own_callback_that_raises_leaves_the_picture(text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run_train(
            *SMALL,
            "data=text",
            f"data.path={text_file}",
            "data.bptt=8",
            f"hydra.run.dir={tmp_path}/run",
            "+callbacks.bad._target_=tests.test_plot.FailsInTheSecondEpoch",
        )
    assert (tmp_path / "run/loss.png").is_file()


class FailsInTheSecondEpoch(pl.Callback):
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            raise ValueError("on purpose")


def test_the_program_draws_what_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], drawn: list[Figure]
) -> None:
    for sweep in ("a", "b"):
        write_run(tmp_path / f"{sweep}/0_gru", rows(3))
    write_run(tmp_path / "a/1_just_begun", [])
    monkeypatch.chdir(tmp_path)
    main(["a/0_gru", "b/0_gru/metrics.csv", "a/1_just_begun"])
    out, err = capsys.readouterr()
    assert out == "losses.png: 2 runs\n"
    assert err == "left out, as no epoch has ended there: a/1_just_begun\n"
    assert imread("losses.png").ndim == 3
    names = [label.get_text().split("  ")[1] for label in drawn[0].axes[0].get_legend().get_texts()]
    assert names == ["a/0_gru", "b/0_gru"]
    for name, magic in {"curves.svg": b"<?xml", "CURVES.PDF": b"%PDF"}.items():
        main(["a/0_gru", "--output", name])
        assert Path(name).read_bytes().startswith(magic)


def test_the_legend_says_how_the_runs_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[Figure]
) -> None:
    given = {"a": ["model=gru", "schedule=linear"], "b": ["model=gru", "schedule=wsd", "optimizer.lr=1e-3"], "c": None}
    monkeypatch.chdir(tmp_path)
    for number, (name, overrides) in enumerate(given.items()):
        run = write_run(tmp_path / name, rows(3, val_nats=1.0 + number))
        (run / ".hydra").mkdir()
        (run / ".hydra/overrides.yaml").write_text("{damaged" if overrides is None else yaml.dump(overrides))
    main(["a", "b"])
    main(["a", "b", "c"])
    texts = [[label.get_text() for label in figure.axes[0].get_legend().get_texts()] for figure in drawn]
    assert texts[0] == ["1.0000  a\nschedule=linear", "2.0000  b\nschedule=wsd optimizer.lr=1e-3"]
    assert texts[1][0] == "1.0000  a\nmodel=gru schedule=linear" and texts[1][2] == "3.0000  c"
    label = drawn[0].axes[0].get_legend().get_texts()[0]
    assert label.get_fontfamily() == ["DejaVu Sans"]  # no other font was looked for, which takes long


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "there is no nowhere"),
        (["empty"], "no epoch has ended in empty"),
        (["junk.bin"], "junk.bin is not the metrics.csv of a run"),
        (["words.csv"], "words.csv is not the metrics.csv of a run"),
        (["run", "--output", "loss.gif"], "--output=loss.gif must end in .png, .svg or .pdf"),
        (["run", "--output", "no/where.png"], "there is no folder no"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], named: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", rows(2))
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.bin").write_bytes(bytes(range(256)))
    (tmp_path / "words.csv").write_text("epoch,train_nats,val_nats,learning_rate\none,2,3,4\n")
    done = subprocess.run(
        [sys.executable, "-m", "charlm.plot", *arguments],
        cwd=tmp_path,
        env={**environment(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and named in done.stderr and done.stderr.count("\n") == 1
