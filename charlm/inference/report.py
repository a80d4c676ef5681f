"""An evaluation in the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from charlm.inference.evaluation import Evaluation, Part
from charlm.inference.methods import Methods
from charlm.output import counted, print_facts, print_table


def print_evaluation(console: Console, name: str, text: str, methods: Methods, found: Evaluation) -> None:
    """The figures of one model: first those that are quoted, then the loss by kind of character and by distance."""
    low, high = found.interval
    facts = {
        "model": name,
        "text": f"{text}, {found.characters:,} characters, {found.bytes:,} bytes",
        "protocol": f"{found.losses.protocol.name}: {found.losses.protocol.describe()}",
        **methods.describe(),
        "loss": f"{found.nats:.4f} nats/char, 95 % interval {low:.4f} to {high:.4f}",
        "": f"{found.bits:.4f} bits/char, {found.bits_per_byte:.4f} bits/byte, perplexity {perplexity(found)}",
        "accuracy": f"{100 * found.accuracy():.2f} %, among the best five {100 * found.accuracy(5):.2f} %",
    }
    if not math.isnan(found.calibration_error):
        facts["calibration"] = f"expected error {100 * found.calibration_error:.2f} %"
    count, nats = found.unknown
    if count:
        which = counted(count, "character") + (" is" if count == 1 else " are")
        facts["unknown"] = f"{which} not in the vocabulary; to say where, and which, costs {nats:,.1f} nats"
    print_facts(console, facts)
    console.print()
    print_table(console, parts_table("kind", found.by_kind))
    if found.losses.protocol.name != "stream":  # there, it is nearly always far
        console.print()
        print_table(console, parts_table("distance", found.by_distance))


def perplexity(found: Evaluation) -> str:
    """The perplexity as text."""
    return f"{found.perplexity:.3f}" if found.perplexity < 1e6 else f"{found.perplexity:.3g}"


def parts_table(title: str, parts: Mapping[str, Part]) -> Table:
    """Loss and accuracy of parts of the characters."""
    table = plain_table(title, "characters", "nats/char", "bits/char", "accuracy")
    for name, part in parts.items():
        nats = part.nats_per_character
        row = (name, f"{part.characters:,}", f"{nats:.4f}", f"{nats / math.log(2):.4f}", f"{100 * part.accuracy:.2f} %")
        table.add_row(*map(Text, row))
    return table


def plain_table(first: str, *others: str) -> Table:
    """A table without lines, whose numbers are aligned right."""
    table = Table(box=None, pad_edge=False, header_style="bold cyan")
    table.add_column(Text(first), overflow="fold")
    for name in others:
        table.add_column(Text(name), justify="right")
    return table


def models_table(rows: Sequence[tuple[str, str, Evaluation, float]]) -> Table:
    """Several models, the lowest loss first: name, text, figures, and the seconds that each took.

    Where they read different texts, there is a column that says which: their losses cannot be compared.
    """
    different = len({found.losses.text for _, _, found, _ in rows}) > 1
    titles = ["nats/char", "95 % interval", "bits/char", "bits/byte", "accuracy", "time"]
    table = plain_table("model", *(["text"] if different else []), *titles)
    for name, text, found, seconds in sorted(rows, key=lambda row: row[2].nats):
        low, high = found.interval
        figures = (f"{found.nats:.4f}", f"{low:.4f}–{high:.4f}", f"{found.bits:.4f}", f"{found.bits_per_byte:.4f}")
        where = [f"{text}, {found.characters:,} characters"] if different else []
        table.add_row(*map(Text, (name, *where, *figures, f"{100 * found.accuracy():.2f} %", f"{seconds:.1f} s")))
    return table


def seeds_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The means over seeds."""
    table = plain_table("models that differ in their seed", "seeds", "mean nats/char", "standard deviation")
    for row in rows:
        figures = (f"{row['mean_nats_per_character']:.4f}", f"{row['standard_deviation']:.4f}")
        table.add_row(*map(Text, (", ".join(row["models"]), str(len(row["seeds"])), *figures)))
    return table


def compressors_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The sizes for the terminal."""
    table = plain_table("compressor", "settings", "bytes", "nats/char", "bits/byte", "alone")
    for row in rows:
        if "why" in row:
            table.add_row(*map(Text, (row["name"], row["why"])))
            continue
        figures = (f"{row['bytes']:,}", f"{row['nats_per_character']:.4f}", f"{row['bits_per_byte']:.4f}")
        alone = f"{row['unprimed']:,}" if "unprimed" in row else ""
        table.add_row(*map(Text, (row["name"], row["settings"], *figures, alone)))
    return table


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """A blank line and `lines`, as they are."""
    console.print()
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
