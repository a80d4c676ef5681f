"""`charlm.train`, as the README uses it in a notebook."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

import charlm
from tests.helpers import SMALL


def test_training_from_python_is_training_from_the_command_line(tmp_path: Path, text_file: Path, text: str) -> None:
    """Trains twice in one process; the second call resumes the run and extends it."""
    overrides = ["data=text", f"data.path={text_file}", "data.bptt=8", "data.batch_size=1", *SMALL]
    results = [charlm.train(*overrides, folder=tmp_path / name) for name in ("a", "b")]
    assert results[0].nats == results[1].nats == results[0].summary["best_val_nats"]
    assert [row["epoch"] for row in results[0].history] == [1, 2]
    assert results[0].model.generate("a", 20, seed=1) == results[1].model.generate("a", 20, seed=1)
    assert results[0].model.score(text[1800:]) == pytest.approx(results[0].nats, abs=1e-6)
    longer = charlm.train(f"resume={tmp_path}/a", "trainer.max_epochs=3")
    assert [row["epoch"] for row in longer.history] == [1, 2, 3]
    assert [row["val_nats"] for row in longer.history[:2]] == [row["val_nats"] for row in results[0].history]


def test_the_folder_is_a_new_one_in_runs(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = charlm.train("data=text", f"data.path={text_file}", "data.bptt=8", *SMALL, "trainer.max_epochs=1")
    assert result.folder.parent == Path("runs") and result.folder.name.endswith("_gru_text")
    assert (tmp_path / result.folder / "checkpoints/best.ckpt").is_file()


def test_runs_of_one_second_have_folders_of_their_own(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "data.bptt=8", *SMALL[:3])
    results = [charlm.train("data=text", f"data.path={text_file}", *short) for _ in range(3)]
    assert len({result.folder for result in results}) == 3


def test_arguments_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(charlm.UsageError, match="leave out folder="):
        charlm.train(f"resume={tmp_path}", folder=tmp_path / "other")
    with pytest.raises(charlm.UsageError, match="give folder="):
        charlm.train(f"hydra.run.dir={tmp_path}")


@pytest.mark.parametrize(
    "override", ["modle=gru", "model=nonsense", "data.batch_size=0", "data.path='", "data.path=${nope}", "data=nope"]
)
def test_a_mistake_is_a_usage_error(override: str, tmp_path: Path, text_file: Path) -> None:
    with pytest.raises(charlm.UsageError):
        charlm.train("data=text", f"data.path={text_file}", *SMALL, override, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_interrupt_saves_a_checkpoint_and_is_a_keyboard_interrupt(tmp_path: Path, text_file: Path) -> None:
    """As the stop button of a notebook does it: a real SIGINT, once training is under way."""
    run = tmp_path / "run"

    def epochs() -> int:
        return len((run / "metrics.csv").read_text().splitlines()) - 1 if (run / "metrics.csv").exists() else 0

    def interrupt() -> None:
        while epochs() < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    overrides = ("data=text", f"data.path={text_file}", "data.bptt=8", *SMALL[:3], "trainer.max_epochs=1000")
    with pytest.raises(KeyboardInterrupt):
        charlm.train(*overrides, "logger=none", folder=run)
    thread.join(10)
    assert (run / "checkpoints/last.ckpt").is_file()
    assert 2 <= epochs() < 1000
