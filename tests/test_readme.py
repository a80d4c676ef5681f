"""The README's commands run as written, only on less data."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.lesson import __main__ as ladder
from benchmarks.lesson.table import short
from tests.helpers import ROOT, SMALL, run_train, summary

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    (.+)$", README, re.MULTILINE)
INLINE = re.findall(r"`(python (?:train|sample|evaluate)\.py[^`]*)`", README)
TRAIN = sorted({c.split("&&")[-1].strip() for c in [*COMMANDS, *INLINE] if "train.py" in c and "--help" not in c})
FEWER = ("trainer.max_epochs=1", "model.hidden_size=8", "data.batch_size=4", "data.bptt=8", "++data.train=400")


def test_the_readme_has_the_two_commands() -> None:
    assert "pip install -e . && python train.py model=gru" in COMMANDS
    assert 'pip install -e ".[dev,keras,notebook,sweep,slurm,ray,evaluate,constrain,interactive]" && pytest' in COMMANDS


@pytest.mark.parametrize("command", TRAIN)
def test_train_commands(command: str, tmp_path: Path, text_file: Path) -> None:
    left_out = ("RAY_ADDRESS", "trainer.max_epochs", "data.path", "search.trials")  # there is no such cluster
    arguments = [word for word in shlex.split(command) if not word.startswith((*left_out, "python", "train.py"))]
    if arguments[0].startswith("resume="):
        run_train(*SMALL, *FEWER, "data=text", f"data.path={text_file}", f"hydra.run.dir={tmp_path}")
        run_train(f"resume={tmp_path}", *shlex.split(command)[3:])
        assert summary(tmp_path)["epochs"] == 18
        return
    if arguments[0].startswith("init_from="):
        run_train(*SMALL, *FEWER, "data=text", f"data.path={text_file}", f"hydra.run.dir={tmp_path}/earlier")
        arguments[0], small = f"init_from={tmp_path}/earlier", [o for o in FEWER if not o.startswith("model.")]
        run_train(*arguments, f"data.path={text_file}", *SMALL[:1], *small, f"hydra.run.dir={tmp_path}/run")
        assert (tmp_path / "run/checkpoints/best.ckpt").is_file()
        return
    if "experiment=search_lstm" in arguments:
        trials, epochs = (2, 4) if "search.pruner=population" in arguments else (1, 1)
        small = ["data.bptt=8", f"search.trials={trials}", f"trainer.max_epochs={epochs}", *SMALL[:1]]
        options = [*arguments, "data=text", f"data.path={text_file}", *small, f"hydra.run.dir={tmp_path}"]
        run_alone(*options) if "search.engine=ray" in arguments else run_train(*options)
        assert (tmp_path / "search.png").is_file()
        return
    if "data=mix" in arguments:
        run_train(*arguments, f"data.paths=[{text_file},{text_file}]", *SMALL[:1], *FEWER, f"hydra.run.dir={tmp_path}")
        return
    where = [f"hydra.run.dir={tmp_path}/run", f"hydra.sweep.dir={tmp_path}/sweep"]
    # The user's own text replaces the corpora, which may not be available.
    corpus = ["~data.corpus", f"+data.corpus={{_target_: charlm.text.sources.read, path: {text_file}}}"]
    data = [f"data.path={text_file}"] if "data=text" in arguments else corpus
    data += ["++data.val=200"]
    options = [*arguments, *data, *SMALL[:1], *FEWER, *where]
    if "trainer=ddp" in arguments:  # starts its processes with the command line of this one
        run_alone(*options)
    else:
        run_train(*options)
    assert list(tmp_path.glob("**/lr_find.png" if "task=lr_find" in arguments else "**/best.ckpt"))


def run_alone(*options: str) -> None:
    """Run train.py in a process of its own, as it starts others."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    subprocess.run([sys.executable, ROOT / "train.py", *options], check=True, cwd=ROOT, env=environment)


def test_sample_and_python_code(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "readme.txt").write_text(README[:8000])  # has the characters that the commands want
    run_train(
        *SMALL, "data=text", f"data.path={tmp_path}/readme.txt", "data.bptt=8", f"hydra.run.dir={tmp_path}/runs/a"
    )
    assert summary(tmp_path / "runs/a")["epochs"] == 2
    shutil.copytree(tmp_path / "runs/a", tmp_path / "runs/b")
    (tmp_path / "sweeps/s").mkdir(parents=True)
    shutil.copytree(tmp_path / "runs/a", tmp_path / "sweeps/s/1")
    evaluations = [c for c in [*COMMANDS, *INLINE] if c.startswith("python evaluate.py")]
    for command in evaluations:
        places = {"runs": "runs/a", "sweeps": "sweeps/s/1"}
        words = [places.get(word.partition("/")[0], word) for word in shlex.split(command)[2:]]
        done = subprocess.run(
            [sys.executable, ROOT / "evaluate.py", *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0 and "nats/char" in done.stdout
    samples = [c for c in [*COMMANDS, *INLINE] if c.startswith("python sample.py")]
    assert samples and evaluations
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    (tmp_path / "letter.txt").write_text("dear")
    (tmp_path / "person.json").write_text(json.dumps({"enum": ["ab", 12]}))
    for command in samples:
        if "--interactive" in command:
            continue  # tests/inference/test_interactive.py does
        arguments = [sys.executable, str(ROOT / "sample.py"), *shlex.split(command)[2:], "--unknown", "skip"]
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout, done.stderr
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    shutil.copy(text_file, tmp_path / "notes")
    small = ", ".join(f'"{override}"' for override in [*SMALL, "data.bptt=8"])
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        code = code.replace("To be, or not to be", "abc").replace("the philosopher", "abc")
        exec(code.replace('"model=gru"', small), {})


def test_the_ladders_table_is_made_from_its_record() -> None:
    record = json.loads((ROOT / "docs/ladder.json").read_text())
    assert "\n".join(short(record)) in README


def test_ladder_commands_name_rows_that_are_there() -> None:
    commands = re.findall(r"--rows ([\d,]+)", README)
    assert commands and all(ladder.numbers(rows) for rows in commands)


def test_every_file_the_readme_names_exists() -> None:
    for name in re.findall(r"`((?:charlm|conf|benchmarks|docs|\.ci)/[\w./]*)`", README):
        assert (ROOT / name.replace("yours", "gru")).exists(), name
