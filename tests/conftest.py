"""Fixtures for all tests."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch

from tests.helpers import ROOT

# One thread: these networks are too small for more, and runs need not measure how many are fastest. With pytest -n,
# more threads than cores would slow PyTorch down tenfold.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)


FAST = {"data", "inference", "models", "text"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests in the quick folders as fast."""
    for item in items:
        if item.path.parent.name in FAST and not item.get_closest_marker("slow"):
            item.add_marker("fast")


@pytest.fixture(autouse=True)
def in_repository_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # train.py sets it; monkeypatch restores it after each test


@pytest.fixture
def text() -> str:
    """Two thousand characters of invented words: learnable, and free of copyright."""
    rng = random.Random(0)
    words = ["".join(rng.choice("abcdefgh") for _ in range(rng.randint(1, 6))) for _ in range(20)]
    return " ".join(rng.choice(words) for _ in range(500))[:2000]


@pytest.fixture
def text_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(text)
    return path
