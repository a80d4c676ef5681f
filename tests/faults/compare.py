"""Find the differences between two runs that should be identical."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

# Times and paths differ between any two runs.
TIMES = {"seconds", "fit_seconds", "training_seconds", "trained", "characters_per_second"}
VOLATILE = TIMES | {"best_checkpoint", "last_checkpoint", "overrides"}


def differences(one: Path, other: Path) -> list[str]:
    """Every difference between two finished run folders: checkpoints, rows, samples, summary, leftover files."""
    found = []
    for name in sorted({path.name for run in (one, other) for path in (run / "checkpoints").iterdir()}):
        files = [run / "checkpoints" / name for run in (one, other)]
        if missing := [str(file) for file in files if not file.exists()]:
            found.append(f"{missing[0]} is missing")
        else:
            found += [f"{name}: {d}" for d in compare(*[torch.load(file, weights_only=True) for file in files])]
    readers: dict[str, Callable[[Path], Any]] = {
        "metrics.csv": rows,
        "samples.txt": Path.read_text,
        "summary.json": summary,
    }
    for name, read in readers.items():
        found += [f"{name}: {d}" for d in compare(read(one / name), read(other / name))]
    return found + [f"{file} was left behind" for run in (one, other) for file in run.rglob("*.tmp")]


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, in which 0.0 and -0.0 differ."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def summary(path: Path) -> Any:
    """The content of ``summary.json``."""
    return json.loads(path.read_text())


def compare(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """Where two nested values differ, bit for bit. Ignores times and paths."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other} - VOLATILE, key=str):
            if key == "logged":  # a sum, a count and a time
                one, other = ({**part, key: part[key][:2]} for part in (one, other))
            if key not in one or key not in other:
                yield f"{place}/{key} is in one only"
            else:
                yield from compare(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            yield f"{place} has {len(one)} and {len(other)} entries"
        for i, (left, right) in enumerate(zip(one, other, strict=False)):
            yield from compare(left, right, f"{place}/{i}")
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape or not torch.equal(*map(as_bytes, (one, other))):
            yield f"{place} differs"
    elif repr(one) != repr(other):  # tells 0.0 from -0.0
        yield f"{place} is {one!r} and {other!r}"
