"""Every method of evaluate.py on one run, as a table: python -m benchmarks.evaluation RUN FILE.json.

Each row is a command, which is run in a process of its own. FILE.json keeps the figures: a row that is there is not run
again. The ends of SGDR's cycles, where the run has some, are combined as well. Minutes are those of the whole command,
choosing settings included.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLAIN = {
    "trained network": "",
    "in training's streams": "--protocol streams:64",
    "windows of 256": "--protocol windows:256",
    "compressors": "--compressors",
    "dynamic, SGD, 4 streams": "--dynamic sgd --protocol streams:4 --dynamic-segment 40",
    "dynamic, SGD": "--dynamic sgd",
    "fitted temperature": "--temperature fit",
    "neural cache": "--cache",
    "dynamic, RMS-norm, 4 streams": "--dynamic rms --protocol streams:4 --dynamic-segment 40",
    "nanoGPT's estimate": "--protocol nanogpt",
}
FILES = ("--streams 64", "--streams 16 --dynamic sgd", "")  # how .clm files are made


def rows(run: Path) -> Iterator[tuple[str, list[str]]]:
    """The name and the arguments of each row."""
    ends = sorted(map(str, run.glob("checkpoints/cycle-*.ckpt")))[-3:]
    for name, options in PLAIN.items():
        yield name, [str(run), *shlex.split(options)]
    if len(ends) > 1:
        yield f"average of {len(ends)} cycle ends", ["--average", *ends]
        yield f"ensemble of {len(ends)} cycle ends", ["--ensemble", *ends]


def evaluated(arguments: list[str]) -> dict[str, Any]:
    """What ``evaluate.py`` finds, with the minutes it took."""
    began = time.perf_counter()
    command = [sys.executable, str(ROOT / "evaluate.py"), *arguments, "--json", "-"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"command": shlex.join(["python", "evaluate.py", *arguments]), "minutes": minutes(began)}


def compressed(run: Path, options: list[str], text: str) -> dict[str, Any]:
    """The size of `text` as a .clm file, which is restored and compared with it."""
    with tempfile.TemporaryDirectory() as folder:
        source, packed, restored = (Path(folder, name) for name in ("text", "text.clm", "restored"))
        source.write_text(text, encoding="utf-8", newline="")
        began = time.perf_counter()
        program = [sys.executable, str(ROOT / "evaluate.py"), str(run)]
        subprocess.run([*program, "--compress", source, "-o", packed, *options], check=True, stdout=subprocess.DEVNULL)
        there = minutes(began)
        subprocess.run([*program, "--decompress", packed, "-o", restored], check=True, stdout=subprocess.DEVNULL)
        if restored.read_bytes() != source.read_bytes():
            raise AssertionError("the file that was restored is not the one that was compressed")
        size = packed.stat().st_size
    figures = {"bits_per_character": 8 * size / len(text), "bits_per_byte": 8 * size / len(text.encode())}
    command = shlex.join(["python", "evaluate.py", str(run), "--compress", "FILE", *options])
    return figures | {
        "nats_per_character": figures["bits_per_character"] * math.log(2),
        "bytes": size,
        "command": command,
        "minutes": there,
        "minutes_back": minutes(began) - there,
    }


def minutes(began: float) -> float:
    """The minutes since `began`."""
    return (time.perf_counter() - began) / 60


def table(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The lines of the table in Markdown."""
    yield "| | nats/char | 95 % interval | bits/char | bits/byte | accuracy | minutes | command |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name, row in found.items():
        if name == "compressors":
            continue
        interval = row.get("nats_per_character_95")
        cells = [
            name,
            f"{row['nats_per_character']:.4f}",
            f"{interval[0]:.3f}–{interval[1]:.3f}" if interval else f"{row['bytes']:,} bytes",
            f"{row['bits_per_character']:.4f}",
            f"{row['bits_per_byte']:.4f}",
            f"{100 * row['accuracy']:.2f} %" if interval else "",
            f"{row['minutes']:.1f}",
            f"`{row['command']}`",
        ]
        yield f"| {' | '.join(cells)} |"
    for row in found.get("compressors", {}).get("compressors", []):
        if "unprimed" in row:
            figures = f"{row['nats_per_character']:.4f} | {row['bytes']:,} bytes | "
            bits = row["nats_per_character"] / math.log(2)
            yield f"| {row['name']}, {row['settings']} | {figures}{bits:.4f} | {row['bits_per_byte']:.4f} | | | |"


def main() -> None:
    """Fill in the rows that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    found: dict[str, dict[str, Any]] = json.loads(args.file.read_text()) if args.file.exists() else {}

    def keep(name: str, row: dict[str, Any]) -> None:
        found[name] = row
        args.file.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {row['nats_per_character']:.4f} nats/char, {row['minutes']:.1f} minutes", file=sys.stderr)

    for name, arguments in rows(args.run):
        if name not in found:
            keep(name, evaluated(arguments))
    import charlm

    text = charlm.evaluate(args.run).evaluation.losses.text
    for options in FILES:
        name = f".clm file{', ' + options if options else ''}"
        if name not in found:
            keep(name, compressed(args.run, shlex.split(options), text))
    print(*table(found), sep="\n")


if __name__ == "__main__":
    main()
