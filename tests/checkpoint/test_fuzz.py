"""Hostile checkpoints and configs, in a separate process (see tests/checkpoint/fuzz.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(("what", "count"), [("checkpoints", 2000), ("configs", 200)])
def test_hostile_files_do_no_harm(what: str, count: int) -> None:
    outcome = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.fuzz", what, str(count)],
        cwd=ROOT,
        env={**os.environ, "HYDRA_FULL_ERROR": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert outcome.returncode == 0, outcome.stderr[-5000:]
    results = json.loads(outcome.stdout)
    assert results.pop("peak megabytes") < 1024
    assert sum(results.values()) == count
    good = [name for name in results if name.endswith(("opened", "trained", "made ready"))]
    assert len(good) >= (3 if what == "checkpoints" else 2), (
        "harmless changes must be let through, or nothing was tested"
    )
