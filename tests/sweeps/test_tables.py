"""The tables of sweeps and searches, as wide as a terminal."""

from __future__ import annotations

import pytest
from rich.console import Console, RenderableType

from charlm.sweeps import results
from charlm.sweeps.display import Display
from charlm.sweeps.folder import JobRecord, Status
from charlm.sweeps.tables import final_table, live_table, short

NAMES = ["optimizer.lr", "model.hidden_size", "model.layers", "model.output_dropout"]


def lines(shown: RenderableType, width: int = 80) -> list[str]:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(shown)
    return [line.rstrip() for line in captured.get().splitlines()]


def record(number: int, status: Status, nats: float | None = None, left: float | None = None) -> JobRecord:
    overrides = [f"optimizer.lr=0.0{number}8", "model.hidden_size=128", f"model.layers={number}"]
    overrides += ["model.output_dropout=0.1"]
    return JobRecord(number, overrides, f"{number}_gru", status, "gru", "", number, 9, nats=nats, left=left)


RECORDS = [
    record(1, "finished", 2.0),
    record(2, "running", 2.5, 75),
    record(3, "pruned", 3.0),
    record(4, "interrupted"),
    record(5, "diverged"),
    record(6, "waiting"),
]


def test_the_live_table_has_the_running_first_and_fits_80_columns() -> None:
    assert lines(live_table(RECORDS, NAMES, 20, "trial")) == [
        "trial  lr     hidden_size  layers  output_dropout  epoch  best loss         left",
        "    2  0.028  128          2       0.1               2/9     2.5000         1:15",
        "    5  0.058  128          5       0.1               5/9                diverged",
        "    4  0.048  128          4       0.1               4/9             interrupted",
        "    3  0.038  128          3       0.1               3/9     3.0000       pruned",
        "    1  0.018  128          1       0.1               1/9     2.0000     finished",
        "1 running, 1 diverged, 1 interrupted, 1 finished, 1 pruned, 1 waiting",
    ]
    assert len(lines(live_table(RECORDS, NAMES, 4, "trial"))) == 4


@pytest.mark.parametrize("width", [80, 120])
def test_the_final_table_has_short_names_where_long_ones_do_not_fit(width: int) -> None:
    table = results.rows(RECORDS[:3], "best_val_nats", NAMES, "trial")
    head, *rows = lines(final_table(table, "best_val_nats", width), width)
    names, loss = (short(NAMES), ["best", "loss"]) if width == 80 else (NAMES, ["best_val_nats"])
    assert head.split() == ["trial", *names, *loss, "epochs", "time", "status"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3"] and max(map(len, rows)) <= width


def test_names_are_short_unless_they_would_be_equal() -> None:
    assert short(["model.dropout", "optimizer.lr", "seed"]) == ["dropout", "lr", "seed"]
    assert short(["a.dropout", "b.dropout", "c.x"]) == ["a.dropout", "b.dropout", "x"]


def test_a_file_gets_a_line_for_what_begins_or_ends(capsys: pytest.CaptureFixture[str]) -> None:
    now = RECORDS[:1]
    display = Display(Console(width=120), lambda: now, ["model.layers"], "trial")
    display.say(RECORDS[:3])
    display.say(RECORDS[:3])
    assert capsys.readouterr().out.splitlines() == [
        "trial 2 running   model.layers=2",
        "trial 3 pruned, 3.0000 nats/char, 3 epochs, 0.0 s   model.layers=3",
    ]
