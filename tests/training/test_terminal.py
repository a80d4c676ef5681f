"""What a run prints."""

from __future__ import annotations

import io
import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from charlm.checkpoint.paths import resume_command
from charlm.training.callbacks import terminal
from charlm.training.callbacks.terminal import counted, duration, preview, print_facts, report, total_time
from tests.helpers import ROOT, SMALL, run_train

SUMMARY = {
    "best_val_nats": 1.5,
    "best_val_bpc": 2.2,
    "best_val_perplexity": 4.5,
    "corpus": "nietzsche",
    "corpus_substituted": False,
    "characters_per_second": 50_000.0,
    "seconds": 12.34,
    "epochs": 1,
    "steps": 1,
    "best_checkpoint": "runs/2026-11-24_15-31-23_gru_nietzsche/checkpoints/best.ckpt",
}


def reported(train_nats: float = 1e9, **values: Any) -> list[str]:
    out = io.StringIO()
    report(Console(file=out, width=80), SUMMARY | values, train_nats, symbols=60)
    return out.getvalue().splitlines()


def test_the_sample_command_is_one_line_of_80_columns() -> None:
    lines = reported()
    assert lines[-1] == "  python sample.py --checkpoint runs/2026-11-24_15-31-23_gru_nietzsche"
    assert max(map(len, lines)) <= 80
    deep = "/very" * 30
    assert reported(best_checkpoint=f"{deep}/checkpoints/best.ckpt")[-1] == f"  python sample.py --checkpoint {deep}"


def test_the_commands_lead_to_the_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT / "docs")
    assert reported()[-1].startswith("  python ../sample.py --checkpoint ")
    assert resume_command(Path("runs/a")) == "python ../train.py resume=runs/a"
    monkeypatch.chdir(tmp_path)
    (shown,) = [word for word in reported()[-1].split() if word.endswith("sample.py")]
    assert Path(shown).resolve() == ROOT / "sample.py"


def test_short_times_are_seconds_and_one_is_singular() -> None:
    assert "time                  12.3 seconds, 1 epoch, 1 step" in reported()
    assert total_time(59.9) == "59.9 seconds" and total_time(90) == "1.5 minutes" and total_time(9000) == "2.5 hours"
    assert duration(0.4) == "0.4 s" and duration(9.97) == "0:10" and duration(75) == "1:15"
    assert counted(1, "thread") == "1 thread" and counted(1000, "step") == "1,000 steps"


def test_a_diverged_run_is_called_that() -> None:
    limit = 2 * math.log(60)
    fine, diverged = "\n".join(reported(best_val_nats=limit - 0.01)), "\n".join(reported(best_val_nats=limit + 0.01))
    assert "best validation loss" in fine and "sample.py" in fine and "diverged" not in fine
    assert "best validation loss" not in diverged and "sample.py" not in diverged and "optimizer.lr" in diverged
    learned = "\n".join(reported(0.1, best_val_nats=limit + 0.01))  # by heart, and its validation text is another
    assert "best validation loss" in learned and "diverged" not in learned


@pytest.mark.parametrize(
    "text", ["plain " * 40, "日本語の文章" * 30, "العربية " * 30, "🙂👩‍👩‍👧 " * 30, "e\u0301" * 200]
)
@pytest.mark.parametrize("width", [20, 76])
def test_a_preview_fits_its_width_whatever_the_script(text: str, width: int) -> None:
    shown = preview(text, width)
    assert width - 8 <= cell_len(shown) <= width
    assert text.startswith(shown)


def test_a_preview_holds_nothing_that_a_terminal_obeys() -> None:
    assert preview("a\x1b[2Jb\nc\x07", 20) == "a[2Jb c"
    assert preview("", 20) == ""


def test_the_header_has_no_blanks_at_the_ends_of_lines() -> None:
    out = io.StringIO()
    rows = {"model": "GRU", "a longer name": "many words " * 9, "path": "/deep" * 20}
    print_facts(Console(file=out, width=40), rows)
    lines = out.getvalue().splitlines()
    assert all(line == line.rstrip() and len(line) <= 40 for line in lines)
    assert [line[:15].strip() for line in lines if line[0] != " "] == list(rows)
    assert " ".join(line[15:] for line in lines[1:-4]).split() == ("many words " * 9).split()
    assert "".join(line[15:] for line in lines[-4:]) == "/deep" * 20


def test_a_log_tells_the_progress_in_a_long_epoch(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clock goes on by 3 s at each look at it."""
    clock = itertools.count(0, 3)
    monkeypatch.setattr(terminal, "monotonic", lambda: float(next(clock)))
    options = ("data.bptt=8", "data.batch_size=4", f"hydra.run.dir={tmp_path}/run")
    run_train(*SMALL, "data=text", f"data.path={text_file}", *options)
    out = capsys.readouterr().out
    number = r"[\d.,]+"
    progress = rf"^epoch [12]/2   \d+%   train {number}   {number} chars/s   [\d:.]+(?: s)? left$"
    lines = re.findall(progress, out, re.MULTILINE)
    shares = [int(re.findall(r"(\d+)%", line)[0]) for line in lines]
    assert len(lines) >= 4
    assert shares == sorted(shares) and 0 < shares[0] <= shares[-1] <= 100
    speeds = [int(re.findall(r"([\d,]+) chars/s", line)[0].replace(",", "")) for line in lines]
    assert speeds[1] == pytest.approx(4 * 8 / 3, abs=2.5)  # 32 characters at each look
    assert all(line == line.rstrip() for line in out.splitlines())


def test_a_short_run_needs_no_such_line(text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_train(*SMALL, "data=text", f"data.path={text_file}", "data.bptt=8", f"hydra.run.dir={tmp_path}/run")
    assert " left" not in capsys.readouterr().out


def test_the_best_epochs_are_marked(text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the third epoch on, the rate is far too high."""
    run = ("data=text", f"data.path={text_file}", "data.bptt=8", "data.batch_size=4", f"hydra.run.dir={tmp_path}/run")
    rates = ("optimizer.lr=1e-3", "schedule=step", "schedule.scheduler.factor=1000", "schedule.scheduler.at=0.5")
    run_train(*SMALL, *run, *rates, "trainer.max_epochs=4", "trainer.gradient_clip_val=1")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    losses = [float(re.findall(r"val ([\d.]+)", line)[0]) for line in lines]
    marks = [re.sub(r".* chars/s   [\d:.]+( s)?", "", line) for line in lines]
    best = [loss == min(losses[: n + 1]) for n, loss in enumerate(losses)]
    assert best[:2] == [True, True] and not all(best)
    assert marks == [" * best", *(" *" if is_best else "" for is_best in best[1:])]
