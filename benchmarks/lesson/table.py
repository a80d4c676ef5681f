"""The ladder's results as a Markdown page."""

from __future__ import annotations

from typing import Any

from benchmarks.lesson.lesson import LADDER, Entry

TOLERANCE = 0.03  # nats per character

HEAD = """# The ladder

Every system of the lesson, trained with this framework on Nietzsche, next to the figures that the lesson prints.
Written by `python -m benchmarks.lesson`, which trains every row that has no finished run in `runs/ladder/` yet.

Losses are means per character in nats, one per epoch, unless the row says otherwise. "val" and "train" say which loss
is compared: training losses are compared with training losses only. The difference is ours minus the lesson's last
figure, so negative is better; the aim is at most +0.03. "Leaky" means that random validation windows overlap training
windows, which flatters both figures. Answers are those of `get_next` (the most likely next character), `get_nexts` (one
after every character of the prompt) or `get_next_n` (a greedy continuation); ␣ is a space.

"""


COLUMNS = ["row", "system", "command", "parameters", "lesson", "ours", "difference", "minutes", "leaky"]
COLUMNS += ["prompt → the lesson's answer / ours", "remarks"]


def render(results: dict[str, Any]) -> str:
    """The whole page. Rows without a result say that they have not been run."""
    lines = [HEAD + line(COLUMNS), line(["---"] * len(COLUMNS))]
    for entry in LADDER:
        lines.append(line(cells(entry, results.get(entry.row))))
    lines.append(line(oracle(results.get("21"))))
    machines = sorted({result["machine"] for result in results.values()})
    return "\n".join([*lines, "", f"Measured on: {'; '.join(machines)}.", ""])


def line(values: list[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"


def visible(text: str) -> str:
    """Spaces and line breaks as symbols."""
    return text.replace(" ", "␣").replace("\n", "⏎")


def numbers(values: tuple[float, ...] | list[float], every: int, digits: int = 3) -> str:
    """The first, every `every`-th and the last of the figures."""
    chosen = sorted({0, *range(every - 1, len(values), every), len(values) - 1})
    shown = [values[i] for i in chosen]
    return ", ".join(f"{value:.{digits}f}" for value in shown)


def cells(entry: Entry, result: dict[str, Any] | None) -> list[str]:
    """One row of the table."""
    split = entry.compared
    unit = "" if entry.unit == "nats/char" else f" ({entry.unit})"
    lesson = f"{split} {numbers(entry.figures, entry.every)}{unit}" if entry.figures else entry.lesson
    leaky = "leaky" if entry.leaky else "no" if entry.split == "val" else ""
    if result is None:
        return [entry.row, entry.system, "", "", lesson, "not run yet", "", "", leaky, "", entry.remark]
    ours = f"{split} {numbers(result['ours'], entry.every)}{unit}"
    return [
        entry.row,
        entry.system,
        f"`{result['command']}`",
        f"{result['parameters']:,}",
        lesson,
        ours,
        difference(entry, result["ours"]),
        f"{result['minutes']:.1f}",
        leaky,
        "; ".join(f"`{visible(prompt)}` → `{visible(a)}` / `{visible(b)}`" for prompt, a, b in result["answers"]),
        "; ".join(filter(None, remarks(entry, result))),
    ]


def difference(entry: Entry, ours: list[float]) -> str:
    """Our last figure minus the lesson's, per character."""
    if entry.last is None or not entry.comparable:
        return "–"
    value = round((ours[-1] - entry.last) / entry.scale, 3) + 0.0  # avoids -0.000
    return f"{value:+.3f}" if value <= TOLERANCE else f"**{value:+.3f}**"


def remarks(entry: Entry, result: dict[str, Any]) -> list[str]:
    """Why the figures differ, and what else was measured."""
    places = result["by_position"]
    by_position = f"ours at positions 1 to {len(places)} of a window: {numbers(places, 1, 2)}" if places else ""
    longer = f"the first epochs of the longer run `{result['taken_from']}`" if result["taken_from"] else ""
    thinned = f"the first, every {entry.every}th and the last figure are shown" if entry.every > 1 else ""
    return [entry.remark, longer, thinned, by_position, result["writes"]]


def oracle(result: dict[str, Any] | None) -> list[str]:
    """Row 21: hand-derived gradients against autograd."""
    system = "RNN, GRU and LSTM in NumPy with hand-derived gradients; stride-one scan in plain Python"
    row = ["21", system, "", "", "gradients agree with autograd to 1e-6"]
    if result is None:
        return [*row, "not run yet", "", "", "", "", ""]
    row[2] = f"`{result['command']}`"
    shown = ", ".join(f"{name} {value:.0e}" for name, value in result["difference"].items())
    return [*row, f"largest difference: {shown}", "", f"{result['minutes']:.1f}", "", "", ""]


def short(results: dict[str, Any]) -> list[str]:
    """The README's table, with last figures only."""
    lines = [line(["row", "`experiment=`", "system", "the lesson", "ours"]), line(["---"] * 5)]
    for entry in LADDER:
        result = results.get(entry.row)
        if result is None:
            continue
        leaky = " (leaky)" if entry.leaky else ""
        ours = f"{entry.compared} {last(entry, result['ours'][-1])}{leaky}"
        lesson = "–" if entry.last is None else f"{entry.compared} {last(entry, entry.last)}"
        lines.append(line([entry.row, f"`{entry.experiment}`", entry.system, lesson, ours]))
    return lines


def last(entry: Entry, value: float) -> str:
    """A figure per character if it is comparable, otherwise in the entry's unit."""
    return f"{value / entry.scale:.3f}" if entry.comparable or entry.scale == 1 else f"{value:.1f} {entry.unit}"
