"""Shared by all tests: a small made-up corpus, a quiet Trainer, and one way to run train.py in-process."""

from __future__ import annotations

import functools
import json
import os
import random
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from charlm.corpus import Corpus
from charlm.data import CharDataModule
from charlm.module import CharLM

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # train.py and sample.py stand beside the package

os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)


@pytest.fixture(autouse=True)
def in_repository_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # train.py sets it; so it is taken back after each test


@pytest.fixture
def text() -> str:
    """Two thousand characters of made-up words: learnable, and nobody's."""
    rng = random.Random(0)
    words = ["".join(rng.choice("abcdefgh") for _ in range(rng.randint(1, 6))) for _ in range(20)]
    return " ".join(rng.choice(words) for _ in range(500))[:2000]


@pytest.fixture
def text_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(text)
    return path


def data_module(text: str, **options: Any) -> CharDataModule:
    return CharDataModule(Corpus(text, "made up", "0" * 64), **{"batch_size": 4, "bptt": 8, **options})


def char_lm(network: torch.nn.Module, lr: float = 1e-2, **options: Any) -> CharLM:
    return CharLM(network, functools.partial(torch.optim.Adam, lr=lr), **options)


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    common = {"accelerator": "cpu", "logger": False, "num_sanity_val_steps": 0, "default_root_dir": folder}
    return pl.Trainer(**{**quiet, **common, "max_epochs": 1, **options})


@functools.cache
def model_spec(name: str) -> dict[str, Any]:
    """What conf/model/NAME.yaml says."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return OmegaConf.to_container(compose("train", [f"model={name}"]).model)


MODELS = sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml"))


def run_train(*overrides: str) -> float | None:
    """`python train.py *overrides` in this process; returns the job's value. Raises SystemExit as it would."""
    import charlm.train

    values: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        run = charlm.train.run
        patch.setattr(charlm.train, "run", lambda config: values.append(run(config)) or values[-1])
        patch.setattr(sys, "argv", ["train.py", *overrides])
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    return values[-1] if values else None


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


SMALL = ("logger=none", "model.embedding_size=8", "model.hidden_size=16", "trainer.max_epochs=2")
