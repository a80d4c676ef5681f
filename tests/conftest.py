"""Fixtures that every test has."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores: one thread each, set before torch is imported
    os.environ["OMP_NUM_THREADS"] = "1"

from tests.helpers import ROOT  # noqa: E402

os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)

# Marked `fast`: modules, and folders of modules, that together take less than two minutes on two cores.
FAST = (
    "checkpoint/test_checkpoint.py",
    "checkpoint/test_storage.py",
    "data",
    "inference/test_decoding.py",
    "models",
    "run/test_configs.py",
    "test_packaging.py",
    "text/test_sources.py",
    "text/test_vocab.py",
    "training",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `FAST` as ``fast``, those apart that are marked ``slow``."""
    fast = [ROOT / "tests" / name for name in FAST]
    for item in items:
        if item.get_closest_marker("slow") is None and any(item.path.is_relative_to(place) for place in fast):
            item.add_marker(pytest.mark.fast)


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
