"""How much of a run is spent on checkpoints: python benchmarks/checkpoint_cost.py [OVERRIDE ...].

Trains like train.py (by default model=gru on Nietzsche) and times every checkpoint from beginning to end: collecting
the state, checking the weights, serialising, writing, fsync, renaming.
"""

from __future__ import annotations

import json
import runpy
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from charlm.training.callbacks.checkpoints import Checkpoints

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Train with the overrides on the command line and print the cost."""
    seconds: list[float] = []
    save = Checkpoints._save

    def timed(self: Checkpoints, *arguments: Any) -> None:
        started = time.perf_counter()
        save(self, *arguments)
        seconds.append(time.perf_counter() - started)

    with tempfile.TemporaryDirectory(dir=".") as folder, patch.object(Checkpoints, "_save", timed):
        sys.argv = ["train.py", *sys.argv[1:], f"hydra.run.dir={folder}/run"]
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        summary = json.loads(Path(folder, "run/summary.json").read_text())
        size = Path(folder, "run/checkpoints/last.ckpt").stat().st_size
    share, median = sum(seconds) / summary["fit_seconds"], statistics.median(seconds)
    print(f"\n{len(seconds)} checkpoints of {size / 1e6:.1f} MB, median {1000 * median:.1f} ms", end=": ")
    print(f"{sum(seconds):.2f} s of {summary['fit_seconds']:.0f} s, {share:.2%} of the run")


if __name__ == "__main__":
    main()
