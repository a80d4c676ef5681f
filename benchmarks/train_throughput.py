"""The overhead of train.py over a bare PyTorch loop: python benchmarks/train_throughput.py.

Both train the same network on Nietzsche with the same batches, optimiser and validation pass. They take turns, each in
a new process with the same thread settings. train.py runs in a pseudo-terminal with the default progress bar, logging,
samples and checkpoints. The table shows medians over the repeats: characters per second in training, and the ratio of
train.py to the bare loop, for the training steps alone and for the whole fit (which includes validation and, for
train.py, samples and checkpoints). A ratio of 1 means no overhead.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def bare(overrides: list[str]) -> dict[str, float]:
    """Train in a plain loop with the config composed from `overrides`. Returns speeds and the validation loss."""
    import torch
    import torch.nn.functional as F

    from charlm.checkpoint.building import build_network
    from charlm.data.batch import IGNORE
    from charlm.data.streams import Streams
    from charlm.models.state import State, detach
    from charlm.run.build import build_data
    from charlm.run.compose import compose_job
    from charlm.run.instantiate import build_corpus, instantiate

    settings, _ = compose_job(overrides)
    torch.manual_seed(settings.seed)
    data = build_data(settings.data, build_corpus(settings.data), settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = build_network(settings.model, len(data.vocab)).to(device)
    optimizer = instantiate("optimizer", settings.optimizer)(network.parameters())
    train, val = data.train_dataloader(), data.val_dataloader()
    for loader in (train, val):  # like train.py, move the text to the device once
        assert isinstance(loader, Streams)
        loader.x_BL, loader.y_BL = loader.x_BL.to(device), loader.y_BL.to(device)
    state: State | None = None
    characters, training, started = 0, 0.0, time.perf_counter()
    assert isinstance(settings.trainer.max_epochs, int)  # it was given
    for _ in range(settings.trainer.max_epochs):
        epoch = time.perf_counter()
        state = None
        network.train()
        for x, y, *_ in train:
            logits, state, _ = network(x, None if state is None else detach(state))
            loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            characters += y.numel()
        loss.item()
        training += time.perf_counter() - epoch
        network.eval()
        total, count, state = torch.zeros((), dtype=torch.float64, device=device), torch.zeros((), device=device), None
        with torch.inference_mode():
            for x, y, *_ in val:
                logits, state, _ = network(x, state)
                flat = logits.reshape(-1, logits.shape[-1]), y.reshape(-1)
                total += F.cross_entropy(*flat, ignore_index=IGNORE, reduction="sum")
                count += (y != IGNORE).sum()
    return {
        "speed": characters / training,
        "fit": characters / (time.perf_counter() - started),
        "val": float(total / count),
    }


def through_train_py(overrides: list[str]) -> dict[str, float]:
    """The same for train.py, in a pseudo-terminal so that it draws the progress bar."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", *overrides, f"hydra.run.dir={folder}/run"]
        screen, terminal = pty.openpty()
        with subprocess.Popen(
            command, cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal, env={**os.environ, "TERM": "xterm"}
        ) as process:
            os.close(terminal)
            seen = b""
            try:
                while chunk := os.read(screen, 65536):
                    seen += chunk
            except OSError:  # how Linux reports that the other end is closed
                pass
        os.close(screen)
        if process.returncode:
            raise SystemExit(seen.decode(errors="replace"))
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
    return {
        "speed": summary["characters_per_second"],
        "fit": summary["characters"] / summary["fit_seconds"],
        "val": summary["best_val_nats"],
    }


def bare_process(overrides: list[str]) -> dict[str, float]:
    """Run `bare` in a new process."""
    command = [sys.executable, __file__, "--bare", *overrides]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["rnn", "gru", "lstm"])
    parser.add_argument("--bptt", nargs="+", type=int, default=[8, 64])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--bare", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare is not None:
        print(json.dumps(bare(args.bare)))
        return
    print(f"{'model':6}{'bptt':>5}{'bare char/s':>14}{'train.py':>12}{'steps':>9}{'whole fit':>11}   (medians)")
    for bptt in args.bptt:
        for model in args.models:
            overrides = [f"model={model}", "data=nietzsche", f"data.bptt={bptt}", f"trainer.max_epochs={args.epochs}"]
            pairs = []
            for _ in range(args.repeats):
                pairs.append((bare_process(overrides), through_train_py(overrides)))
                plain, ours = pairs[-1]
                if abs(plain["val"] - ours["val"]) > 0.02:
                    raise SystemExit(f"the two validation losses differ: {plain['val']:.4f} and {ours['val']:.4f} nats")
            speeds = [statistics.median(pair[side]["speed"] for pair in pairs) for side in (0, 1)]
            ratios = [statistics.median(ours[k] / plain[k] for plain, ours in pairs) for k in ("speed", "fit")]
            print(f"{model:6}{bptt:5}{speeds[0]:14,.0f}{speeds[1]:12,.0f}{ratios[0]:9.3f}{ratios[1]:11.3f}", flush=True)


if __name__ == "__main__":
    main()
