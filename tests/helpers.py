"""Helpers for all tests: a small data module, a quiet Trainer, and train.py in this process."""

from __future__ import annotations

import functools
import importlib
import json
import os
import runpy
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from charlm.data.module import CharDataModule
from charlm.data.options import DataOptions
from charlm.errors import as_usage_error
from charlm.run.build import build_data
from charlm.text.corpus import Corpus
from charlm.training.module import CharLM

ROOT = Path(__file__).resolve().parents[1]


def of_extra(extra: str, package: str) -> Any:
    """A package of an extra. Without it, the test is skipped; not in .ci/run, where every extra must be installed."""
    if os.environ.get("CHARLM_ALL_EXTRAS"):
        return importlib.import_module(package)
    return pytest.importorskip(package, reason=f"needs pip install -e '.[{extra}]'")


def data_module(text: str | Corpus, *, seed: int = 0, **options: Any) -> CharDataModule:
    corpus = Corpus(text, "made up", "0" * 64) if isinstance(text, str) else text
    with as_usage_error("data"):
        data = DataOptions(**{"name": "made up", "corpus": {}, "batch_size": 4, "bptt": 8, **options})
    return build_data(data, corpus, seed)


def char_lm(network: torch.nn.Module, lr: float = 1e-2, **options: Any) -> CharLM:
    return CharLM(network, functools.partial(torch.optim.Adam, lr=lr), **options)


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    common = {"accelerator": "cpu", "logger": False, "num_sanity_val_steps": 0, "default_root_dir": folder}
    return pl.Trainer(**{**quiet, **common, "max_epochs": 1, **options})


@functools.cache
def model_spec(name: str) -> dict[str, Any]:
    """The composed config of conf/model/NAME.yaml."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return OmegaConf.to_container(compose("train", [f"model={name}"]).model, resolve=True)


MODELS = sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml"))


def run_train(*overrides: str) -> float | None:
    """Run `python train.py *overrides` in this process. Returns the loss of the last job. May raise SystemExit."""
    from charlm.run import experiment

    values: list[float] = []
    original = experiment.run

    def run(settings: Any, job: Any) -> experiment.Result:
        result = original(settings, job)
        values.append(result.nats)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "run", run)
        patch.setattr(sys, "argv", ["train.py", *overrides])
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    return values[-1] if values else None


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


SMALL = ("logger=none", "model.embedding_size=8", "model.hidden_size=16", "trainer.max_epochs=2")


def wandb_records(path: Path) -> Iterator[Any]:
    """The protobuf records in an offline W&B file, which is a 7-byte header and LevelDB log blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block is too short for a record header
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""
