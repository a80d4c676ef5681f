"""The losses of an evaluation as a table with a row per character."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

from charlm.errors import UsageError
from charlm.inference.losses import Losses

FORMATS = (".csv", ".parquet")


def check_format(path: str) -> None:
    """Raise UsageError if no table can be written to `path`."""
    where = Path(path)
    if where.suffix not in FORMATS:
        raise UsageError(f"--per-character {path}: the name must end in {' or '.join(FORMATS)}")
    if where.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UsageError('--per-character: .parquet needs pip install -e ".[evaluate]"; .csv needs nothing')


def columns(losses: Losses) -> dict[str, Any]:
    """The columns of the table: see `Losses`; ``place`` counts from 0 in the text as the model reads it."""
    return {
        "place": losses.places,
        "character": [losses.text[i] for i in losses.places.tolist()],
        "nats": losses.nats,
        "rank": losses.ranks,
        "confidence": losses.confidences,
        "distance": losses.distances,
    }


def write_per_character(losses: Losses, path: Path) -> None:
    """Write the table to `path`, as its suffix says."""
    table = columns(losses)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        table["character"] = [c.encode("utf-8", "replace").decode() for c in table["character"]]  # no lone surrogates
        pyarrow.parquet.write_table(pyarrow.table(table), path)
        return
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*(c if isinstance(c, list) else c.tolist() for c in table.values()), strict=True))
