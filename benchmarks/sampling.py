"""How fast text is written: python -m benchmarks.sampling.

Untrained networks write text at temperature 1, in one stream and in 64 at once: charlm, a plain PyTorch loop that keeps
the state, and Keras 3, which predicts a character from the 40 before it as in its text generation example. They take
turns in one process, PyTorch with one thread, the fastest for steps so small. The table shows medians over the repeats
of characters per second, those of all streams together, and of charlm's ratio to the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from charlm.checkpoint.building import build_network
from charlm.inference.decoding import Decoding
from charlm.inference.steps.families import steps_of
from charlm.inference.writing import Writer
from charlm.models.network import Network
from charlm.run.compose import compose_job

Step: TypeAlias = Callable[[], object]  # one character in each stream

ROOT = Path(__file__).resolve().parents[1]
VOCAB = 86
WINDOW = 40
PROMPT = np.arange(10)
LARGE = {"gru 2x512": "gru", "lstm 2x512": "lstm"}
LARGE_OPTIONS = ["model.layers=2", "model.hidden_size=512", "model.embedding_size=64"]
KERAS = {"gru": ("GRU", 1, 256), "lstm": ("LSTM", 1, 256), "gru 2x512": ("GRU", 2, 512), "lstm 2x512": ("LSTM", 2, 512)}
BUSY = "import torch\na = torch.randn(700, 700)\nwhile True: a @ a"


def ours(network: Network, streams: int) -> Step:
    """What `LanguageModel.samples` does for a character of each text."""
    steps = steps_of(network, VOCAB)
    prompts = [(PROMPT, *steps.read(PROMPT))] * streams
    return Writer(steps, prompts, Decoding(temperature=1.0), range(streams), sys.maxsize).draw


def plain(network: Network, streams: int) -> Step:
    """What one would write by hand."""
    with torch.inference_mode():
        logits, state, _ = network(torch.from_numpy(PROMPT).expand(streams, -1))

    @torch.inference_mode()
    def step() -> None:
        nonlocal logits, state
        ids_B1 = torch.multinomial(logits[:, -1].softmax(-1), 1)
        logits, state, _ = network(ids_B1, state)

    return step


def keras(layer: str, layers: int, units: int, streams: int) -> Step:
    """Keras's `predict` with the last 40 characters."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    recurrent = [getattr(keras.layers, layer)(units, return_sequences=rest > 0) for rest in range(layers - 1, -1, -1)]
    embedding = keras.layers.Embedding(VOCAB, 42 if layers == 1 else 64)
    model = keras.Sequential([embedding, *recurrent, keras.layers.Dense(VOCAB, activation="softmax")])
    rng = np.random.default_rng(0)
    text_BT = np.tile(np.arange(WINDOW), (streams, 1))

    def step() -> None:
        nonlocal text_BT
        p_BV = model.predict(text_BT, verbose=0, batch_size=streams).astype(np.float64)
        ids = [[rng.choice(VOCAB, p=p_V / p_V.sum())] for p_V in p_BV]
        text_BT = np.concatenate([text_BT[:, 1:], ids], 1)

    return step


def speed(step: Step, streams: int, seconds: float) -> float:
    """Characters per second, measured for at least so many seconds."""
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds or not count:
        step()
        count += 1
    return streams * count / elapsed


def network_of(name: str) -> Network:
    """The network of conf/model/NAME.yaml, or a larger one."""
    settings, _ = compose_job([f"model={LARGE.get(name, name)}", *(LARGE_OPTIONS if name in LARGE else [])])
    torch.manual_seed(0)
    return build_network(settings.model, VOCAB).eval()


def measure(name: str, streams: int, args: argparse.Namespace) -> dict[str, Any]:
    """The speeds of all for one network: each a list with one for each repeat."""
    network = network_of(name)
    steps = {"ours": ours(network, streams), "plain": plain(network, streams)}
    if args.keras and name in KERAS:
        steps["keras"] = keras(*KERAS[name], streams)
    for step in steps.values():
        for _ in range(3):
            step()
    found: dict[str, Any] = {"model": name, "streams": streams, **{side: [] for side in steps}}
    for _ in range(args.repeats):
        for side, step in steps.items():
            found[side].append(speed(step, streams, args.seconds))
    return found


def line(row: dict[str, Any]) -> str:
    """A line of the table."""
    cells = [f"{row['model']:17}{row['streams']:7}{statistics.median(row['ours']):12,.0f}"]
    for side in ("plain", "keras"):
        if side in row:
            ratio = statistics.median(mine / other for mine, other in zip(row["ours"], row[side], strict=True))
            cells.append(f"{statistics.median(row[side]):12,.0f}{ratio:9,.1f}")
    return "".join(cells)


@contextmanager
def beside(processes: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Have as many processes multiply matrices, each with PyTorch's usual number of threads."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        if busy:
            time.sleep(3)  # until they have started
        yield busy
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    """Measure and print the table."""
    every = sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["rnn", "gru", "lstm", "lstm 2x512"], choices=[*every, *LARGE])
    parser.add_argument("--all", action="store_true", help="every network in conf/model and the larger ones")
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each repeat")
    parser.add_argument("--no-keras", dest="keras", action="store_false")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="beside N processes that multiply matrices")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all speeds in this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{'model':17}{'streams':>7}{'charlm':>12}{'PyTorch':>12}{'ratio':>9}{'Keras':>12}{'ratio':>9}")
    rows = []
    with beside(args.busy):
        for name in [*every, *LARGE] if args.all else args.models:
            for streams in args.streams:
                rows.append(measure(name, streams, args))
                print(line(rows[-1]), flush=True)
    if args.json:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        about = {**versions, "processor": torch.backends.cpu.get_cpu_capability(), "cpus": os.cpu_count()}
        options = {"busy": args.busy, "threads": args.threads, "seconds": args.seconds}
        args.json.write_text(json.dumps({"about": about, "options": options, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
