"""Files survive kills and full disks intact, and so does a run."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from charlm import UsageError
from charlm.checkpoint.storage import Store, replace_file
from charlm.training.checkpoint_io import StoreIO
from charlm.training.module import CharLM
from tests.faults.compare import differences, rows
from tests.helpers import ROOT, SMALL, run_train


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Simulate a full disk: the operating system refuses to write more than `size` bytes to a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"old", b"", b"new" * 10**6):
        replace_file(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "file"
    if there:
        path.write_bytes(b"old")
    with largest_file(1000), pytest.raises(OSError):
        replace_file(path, b"x" * 2000)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({"file": b"old"} if there else {})


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """Kill twenty processes that do nothing but replace a file. A reader never sees half a file."""
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from charlm.checkpoint.storage import replace_file
        number = 0
        while True:
            number += 1
            replace_file(Path(sys.argv[1]), bytes([number % 256]) * 300_000)
            if number == 1:
                print("started", flush=True)
        """
    )
    path, seen = tmp_path / "file", set()
    for delay in range(20):
        with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline()
            signal.sigtimedwait([], delay / 997)
            process.kill()
        data = path.read_bytes()
        assert len(data) == 300_000 and len(set(data)) == 1
        seen.add(data[0])
    assert len(seen) > 3
    replace_file(path, b"over what a kill left behind")
    assert os.listdir(tmp_path) == ["file"]


def test_what_the_disk_does_not_take_is_kept_and_written_later(tmp_path: Path) -> None:
    said: list[str] = []
    store, path, other = Store(said.append), tmp_path / "file", tmp_path / "other"
    path.write_bytes(b"old")
    with largest_file(1000):
        store.write(path, b"1" * 2000)
        store.write(path, b"2" * 2000)
        store.write(other, b"small")
    assert (path.read_bytes(), other.read_bytes()) == (b"old", b"small")
    assert len(said) == 1 and f"{path} cannot be written: File too large" in said[0]
    store.write(other, b"again")
    assert (path.read_bytes(), other.read_bytes()) == (b"2" * 2000, b"again")
    assert len(said) == 2 and "on the disk now" in said[1]
    store.close()


def test_what_the_disk_never_takes_is_an_error(tmp_path: Path) -> None:
    store = Store(lambda text: None)
    with largest_file(1000):
        store.write(tmp_path / "file", b"1" * 2000)
        with pytest.raises(UsageError, match="file cannot be written: File too large"):
            store.close()
    store.close()
    assert (tmp_path / "file").stat().st_size == 2000


def test_lightnings_checkpoints_go_through_the_store(tmp_path: Path) -> None:
    io, path = StoreIO(Store(lambda text: None)), tmp_path / "a.ckpt"
    io.save_checkpoint({"a": torch.arange(3)}, path)
    assert torch.equal(io.load_checkpoint(path)["a"], torch.arange(3))
    io.remove_checkpoint(path)
    assert not path.exists()


def test_a_checkpoint_that_could_not_be_opened_again_is_refused_at_once(tmp_path: Path) -> None:
    io = StoreIO(Store(lambda text: None))
    with pytest.raises(UsageError, match="must be plain values"):
        io.save_checkpoint({"a": Path("x")}, tmp_path / "a.ckpt")


@pytest.fixture
def base(text_file: Path) -> list[str]:
    return [*SMALL, "data=text", f"data.path={text_file}", "data.bptt=8", "data.batch_size=8", "trainer.max_epochs=3"]


@pytest.mark.parametrize("until", [20, 40, 57])  # an epoch has 28 steps
def test_a_run_outlives_a_full_disk(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], until: int
) -> None:
    """The disk is full from step 10 until step `until`. In the end, nothing is missing."""
    steps = ["checkpoint.every_steps=5"]
    run_train(*base, *steps, f"hydra.run.dir={tmp_path}/unbroken")
    original, count, limit = CharLM.training_step, iter(range(1, 10**9)), resource.getrlimit(resource.RLIMIT_FSIZE)

    def training_step(self: CharLM, *arguments: Any) -> Any:
        step = next(count)
        if step in (10, until):
            resource.setrlimit(resource.RLIMIT_FSIZE, (100 if step == 10 else limit[0], limit[1]))
        return original(self, *arguments)

    monkeypatch.setattr(CharLM, "training_step", training_step)
    capsys.readouterr()
    try:
        run_train(*base, *steps, f"hydra.run.dir={tmp_path}/run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("cannot be written: File too large; training continues") == 1
    assert out.count("everything that could not be written before is on the disk now") == 1
    assert differences(tmp_path / "unbroken", tmp_path / "run") == []


def test_a_disk_that_stays_full_is_one_sentence_and_the_run_can_go_on(base: list[str], tmp_path: Path) -> None:
    run_train(*base, f"hydra.run.dir={tmp_path}/unbroken")
    run = tmp_path / "run"
    script = textwrap.dedent(
        """
        import resource, runpy, sys
        from charlm.training.callbacks.history import History

        start = History.on_train_epoch_start

        def full_from_the_second_epoch_on(self, trainer, module):
            if trainer.current_epoch == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
            return start(self, trainer, module)

        History.on_train_epoch_start = full_from_the_second_epoch_on
        sys.argv = ["train.py", *sys.argv[1:]]
        runpy.run_path("train.py", run_name="__main__")
        """
    )
    outcome = subprocess.run(
        [sys.executable, "-c", script, *base, f"hydra.run.dir={run}"],
        cwd=ROOT,
        env={**os.environ, "HYDRA_FULL_ERROR": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert outcome.returncode == 2, outcome.stderr
    assert outcome.stderr.startswith("error: ") and outcome.stderr.count("\n") == 1
    assert "cannot be written: File too large; free some space there and resume the run" in outcome.stderr
    assert len(rows(run / "metrics.csv")) == 1
    run_train(f"resume={run}")
    assert differences(tmp_path / "unbroken", run) == []
