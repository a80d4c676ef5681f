"""A run folder that needed no training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from charlm.checkpoint.building import build_network
from charlm.checkpoint.format import pack
from charlm.text.vocab import Vocab

CHARS = "".join(sorted("\n !\"'(),.=?[]{}:-_0123456789abcdefghijklmnopqrstuvwxyzéß世"))
SPEC = {"_target_": "charlm.models.recurrent.GRU", "embedding_size": 8, "hidden_size": 16}


@pytest.fixture(scope="session")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run in ``runs/``, whose network has random weights."""
    folder = tmp_path_factory.mktemp("sample")
    vocab = Vocab(CHARS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(SPEC, len(vocab))
    content = {
        "charlm": pack(SPEC, vocab, {"lowercase": False}, {}, {}),
        "state_dict": {f"network.{key}": value for key, value in network.state_dict().items()},
    }
    path = folder / "runs" / "one" / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    return folder
