"""Where the output goes nowhere, in any encoding, and where the run folder is deleted beneath a run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import charlm
from charlm.checkpoint.storage import Store
from charlm.errors import UsageError
from charlm.training.module import CharLM
from tests.helpers import ROOT, SMALL, run_train, summary
from tests.programs import environment, in_terminal, read_until


@pytest.fixture
def base(text_file: Path) -> list[str]:
    return [*SMALL, "data=text", f"data.path={text_file}", "data.bptt=8", "data.batch_size=8"]


def shell(command: str, tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `command` in bash; the status is that of the last program in a pipe that fails."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=ROOT,
        env={**environment(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables},
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=120,
    )


@pytest.mark.parametrize("program", ["train.py", "sample.py", "-m charlm.plot"])
def test_help_into_a_pipe_that_is_closed_leaves_no_traceback(program: str, tmp_path: Path) -> None:
    done = shell(f"(sleep 0.2; python {program} --help) | true", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("output", ["| head -1", ">&- 2>&-", "> /dev/full"], ids=["pipe", "closed", "full"])
def test_a_run_goes_on_when_its_output_goes_nowhere(output: str, base: list[str], tmp_path: Path) -> None:
    done = shell(f"python train.py {' '.join(base)} hydra.run.dir={tmp_path}/run {output}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == (output == "| head -1")
    assert summary(tmp_path / "run")["epochs"] == 2


def test_what_is_printed_unbuffered_is_seen_at_once(tmp_path: Path) -> None:
    code = "import os, sys; from charlm.cli import forgiving; sys.stdout = forgiving(sys.stdout); print(1); os._exit(0)"
    assert shell(f'python -u -c "{code}"', tmp_path).stdout == "1\n"


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "utf-16"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=lambda variables: "-".join(variables.values()),
)
def test_any_encoding_works(variables: dict[str, str], tmp_path: Path, base: list[str]) -> None:
    text, log = tmp_path / "japanese.txt", tmp_path / "log"
    text.write_text("いろはにほへと ちりぬるを 🙂 é\n" * 200, encoding="utf-8")
    train = f"python train.py {' '.join(base)} data.path={text} trainer.max_epochs=1 hydra.run.dir={tmp_path}/run"
    sample = f"python sample.py --checkpoint {tmp_path}/run --length 40"
    done = shell(f"{train} >{log} && {sample}", tmp_path, **variables)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    printed = log.read_bytes().decode(variables.get("PYTHONIOENCODING", "ascii"))
    assert "epoch 1" in printed and "write more" in printed
    assert len(done.stdout) >= 40 and set(done.stdout) & set("いろはにほへと")  # always UTF-8


def test_closing_the_terminal_saves_the_run(base: list[str], tmp_path: Path) -> None:
    """The program gets a SIGHUP, and all that it prints fails."""
    run = tmp_path / "run"
    options = [*base, "trainer.max_epochs=100000", f"hydra.run.dir={run}"]
    process, terminal = in_terminal(*options, env=environment(tmp_path))
    read_until(lambda: (run / "samples.txt").exists() and "epoch 2" in (run / "samples.txt").read_text(), terminal)
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 128 + signal.SIGHUP
    steps = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert steps > 0 and (run / "loss.png").is_file()


@pytest.mark.parametrize("step", [5, 30, 57, 85])  # an epoch has 28 steps
def test_a_run_folder_that_is_deleted_is_made_again(
    base: list[str], step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the first epoch, in one in the middle, in the last, and after it."""
    run, original, count = tmp_path / "run", CharLM.training_step, iter(range(1, 10**9))

    def training_step(self: CharLM, *arguments: Any) -> Any:
        if next(count) == step:
            shutil.rmtree(run)
        return original(self, *arguments)

    def on_train_end(self: CharLM) -> None:
        if step == 85:
            shutil.rmtree(run)

    with monkeypatch.context() as patch:
        patch.setattr(CharLM, "training_step", training_step)
        patch.setattr(CharLM, "on_train_end", on_train_end)
        run_train(*base, "trainer.max_epochs=3", f"hydra.run.dir={run}")
    out, err = capsys.readouterr()
    assert err == "" and "free some space" not in out
    assert " ".join(out.split()).count("was deleted: it is made again") == 1
    for name in ("best", "last"):
        charlm.load(run / f"checkpoints/{name}.ckpt")
    for name in ("metrics.csv", "summary.json", ".hydra/config.yaml", ".hydra/overrides.yaml"):
        assert (run / name).is_file(), name
    assert summary(run)["epochs"] == 3
    run_train(f"resume={run}", "trainer.max_epochs=4")
    assert summary(run)["epochs"] == 4


def test_a_folder_that_cannot_be_written_is_not_called_full(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(lambda warning: None)
    store.write(tmp_path / "file/metrics.csv", b"")
    with pytest.raises(UsageError, match="cannot be written: .*; make it writable and resume the run"):
        store.close()


def test_a_run_says_where_wandb_logged_and_how_to_send_it(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_train(*base, "hydra.run.dir=run")
    assert "wandb" not in capsys.readouterr().out
    run_train(*base, "logger=wandb", "hydra.run.dir=my run")
    command = capsys.readouterr().out.splitlines()[-1].strip()
    assert command == "wandb sync 'my run'/wandb/offline-run-*"
    (found,) = shell(f"cd {tmp_path} && ls -d {command.removeprefix('wandb sync ')}", tmp_path).stdout.splitlines()
    assert list((tmp_path / found).glob("*.wandb"))
