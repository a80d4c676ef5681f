"""Thousands of hostile checkpoints or configs: python -m tests.checkpoint.fuzz checkpoints|configs 2000 [--seed SEED].

Each must either work or be refused with one sentence: no traceback, nothing executed, no hang, at most 1 GB of memory.
Prints how many of each kind were opened or refused. `tests/checkpoint/test_fuzz.py` runs it in CI.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from charlm import UsageError
from charlm.checkpoint.loading import load_checkpoint
from charlm.cli import exit_cleanly
from charlm.inference.language_model import LanguageModel
from charlm.run import experiment
from charlm.run.compose import compose_job

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 10  # time limit for one file
GIGABYTE = 2**30


class Executed:
    """Creates a folder when it is unpickled, which shows that code was executed."""

    path = ""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (Executed.path,)


# Mutations of a checkpoint file, from bytes to bytes.


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 10, 100])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_short(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def splice(data: bytes, rng: random.Random) -> bytes:
    """Drop, repeat or overwrite a range of bytes."""
    start, length = rng.randrange(len(data)), rng.choice([1, 8, 100, 5000])
    piece = rng.choice([b"", data[start : start + length] * 2, rng.randbytes(length), b"\0" * length, b"\xff" * length])
    return data[:start] + piece + data[start + length :]


def with_entry(data: bytes, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The same archive with changed entries and correct checksums."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return out.getvalue()


def pickle_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change the pickle itself and keep the checksums correct."""
    mutate = rng.choice([flip_bits, splice, cut_short])
    return with_entry(data, lambda name, body: mutate(body, rng) if name.endswith("data.pkl") else body)


def storage_sizes(data: bytes, rng: random.Random) -> bytes:
    """Give tensors fewer, more or other bytes than the pickle says."""

    def change(name: str, body: bytes) -> bytes:
        if "/data/" in name and rng.random() < 0.5:
            return rng.choice([b"", body[: len(body) // 2], body * 3, rng.randbytes(len(body)), b"\xff" * len(body)])
        return body

    return with_entry(data, change)


def opcodes(data: bytes, rng: random.Random) -> bytes:
    """Replace the pickle by one that calls a function."""
    calls = [
        (os.system, (f"mkdir {Executed.path}",)),
        (os.mkdir, (Executed.path,)),
        (eval, (f"__import__('os').mkdir({Executed.path!r})",)),
        (bytearray, (10**10,)),
        (torch.zeros, (10**10,)),
        (torch.hub.load, ("x", "y")),
        (getattr, ("a", "upper")),
    ]
    function, arguments = rng.choice(calls)
    hostile = type("Hostile", (), {"__reduce__": lambda self: (function, arguments)})()
    body = pickle.dumps(
        {"charlm": hostile, "state_dict": [hostile]} if rng.random() < 0.5 else hostile, rng.choice([2, 4])
    )
    return with_entry(data, lambda name, old: body if name.endswith("data.pkl") else old)


def zip_bomb(data: bytes, rng: random.Random) -> bytes:
    """Replace the weights by zeros that compress well."""
    blank = b"\0" * rng.choice([10**4, 10**6])
    return with_entry(data, lambda name, old: blank if "/data/" in name else old, zipfile.ZIP_DEFLATED)


# Mutations of the content of a checkpoint, which is then saved by PyTorch.


def hostile_value(rng: random.Random, depth: int = 0) -> Any:
    """A value that no code expects."""
    deep: Any = 1
    for _ in range(rng.choice([5, 50, 300])):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    simple = [
        *(None, True, False, -1, 0, 1, 2, 3.5, 10**9, -(10**9), 2**31, 2**63, 10**30, 1e-300, 1e308),
        *(
            float("nan"),
            float("inf"),
            "",
            "\0",
            "\ud800",
            "é" * 1000,
            "a" * 10**5,
            "../../etc/passwd",
            "/dev/zero",
            "1e3",
        ),
        *("${oc.env:HOME}", "${now:%Y}", "${nonsense:1}", "${seed}", "${", "os.system", "charlm.models.recurrent.GRU"),
        *(
            "charlm.text.sources.os.system",
            "charlm.run.experiment.run",
            "builtins.eval",
            "torch.optim.lr_scheduler.LambdaLR",
        ),
        *([], {}, [1, "a", None], [[]], {"_target_": "os.system", "command": f"mkdir {Executed.path}"}),
        *({"_target_": "builtins.eval", "_args_": [f"__import__('os').mkdir({Executed.path!r})"]},),
        *(
            {"_target_": "os.mkdir", "path": Executed.path},
            {"_target_": "charlm.text.sources.os.mkdir", "path": Executed.path},
        ),
        *(
            {"_target_": ["os.mkdir"], "_partial_": True},
            {"_target_": "subprocess.Popen", "args": ["touch", Executed.path]},
        ),
        *({"_target_": "torch.optim.optimizer.torch.hub.load"}, {"_target_": "charlm.models.recurrent.LSTM"}, deep),
    ]
    if depth < 2 and rng.random() < 0.2:
        return {rng.choice(["_target_", "_args_", "a", "lr"]): hostile_value(rng, depth + 1) for _ in range(3)}
    return copy.deepcopy(rng.choice(simple))


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything below `value`."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*above, key)
        yield from paths(part, (*above, key))


def mutate(tree: Any, rng: random.Random, among: str | None = None) -> str:
    """Change `tree` in one to three places. Returns a description of the changes."""
    done = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = [path for path in paths(tree) if among is None or path[0] == among]
        if not places:
            break  # everything was replaced
        *above, key = rng.choice(places)
        parent = tree
        for step in above:
            parent = parent[step]
        kind = rng.choice(["replace", "replace", "replace", "remove", "add", "nudge"])
        if kind == "remove":
            del parent[key]
        elif kind == "add" and isinstance(parent, dict):
            parent[rng.choice(["nonsense", "_target_", "_args_", "_partial_", "_recursive_", "_convert_", "lr"])] = (
                hostile_value(rng)
            )
        elif kind == "nudge" and isinstance(parent[key], int | float):
            parent[key] = parent[key] * rng.choice([-1, 0, 2, 1000, 10**6, 10**9, 0.5])
        else:
            parent[key] = hostile_value(rng)
        done.append(f"{kind} {'.'.join(map(str, [*above, key]))}")
    return ", ".join(done)


def hostile_tensor(weight: torch.Tensor, rng: random.Random) -> Any:
    """A value to replace a weight."""
    return rng.choice(
        [
            lambda: weight.double(),
            lambda: weight.long(),
            lambda: weight[:1],
            lambda: weight.flatten(),
            lambda: torch.full_like(weight, float("nan")),
            lambda: torch.zeros(1).expand(10**9, 10**6),
            lambda: torch.zeros(1).expand_as(weight),
            lambda: torch.empty(weight.shape, device="meta"),
            lambda: weight.to_sparse(),
            lambda: torch.zeros(0),
            lambda: weight.to(torch.complex64),
            lambda: torch.nn.Parameter(weight),
            lambda: hostile_value(rng),
        ]
    )()


def content(data: bytes, rng: random.Random) -> bytes:
    """Change the content of the checkpoint."""
    tree = torch.load(io.BytesIO(data), weights_only=True)
    if rng.random() < 0.4:
        name = rng.choice(list(tree["state_dict"]))
        tree["state_dict"][name] = hostile_tensor(tree["state_dict"][name], rng)
    else:
        mutate(tree, rng, rng.choice(["charlm", "charlm", "charlm", None]))
    out = io.BytesIO()
    torch.save(tree, out)
    return out.getvalue()


def billions(data: bytes, rng: random.Random) -> bytes:
    """Ask for a network of absurd size."""
    tree = torch.load(io.BytesIO(data), weights_only=True)
    size = rng.choice([10**4, 10**6, 10**9, 10**12, 2**62])
    tree["charlm"]["model"][rng.choice(["hidden_size", "embedding_size", "layers", "window"])] = size
    if rng.random() < 0.5:  # with weights that seem to fit
        for name, weight in tree["state_dict"].items():
            shape = [min(size, 10**9) if n == 16 else n for n in weight.shape]
            tree["state_dict"][name] = torch.zeros(1).expand(shape)
    out = io.BytesIO()
    torch.save(tree, out)
    return out.getvalue()


def laughs(data: bytes, rng: random.Random) -> bytes:
    """Add nested lists that share their elements: short in the file, endless to traverse (as in "billion laughs")."""
    tree = torch.load(io.BytesIO(data), weights_only=True)
    inside: Any = ["x"]
    for _ in range(rng.choice([5, 20, 31, 100])):
        inside = [inside] * 10
    rng.choice([tree, tree["charlm"], tree["charlm"]["config"], tree["charlm"]["model"]])["laughs"] = inside
    out = io.BytesIO()
    torch.save(tree, out)
    return out.getvalue()


def disguised(data: bytes, rng: random.Random) -> bytes:
    """Hide a hostile pickle where PyTorch would find it but a zip reader does not look."""
    hostile = pickle.dumps(type("Hostile", (), {"__reduce__": lambda self: (bytearray, (2 * 10**9,))})(), 2)
    if rng.random() < 0.5:
        return hostile + data
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"archive/{rng.choice(['DATA.PKL', 'Data.pkl', 'data.PKL'])}", hostile)
        archive.writestr("archive/version", "3\n")
        if rng.random() < 0.5:
            archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
    return out.getvalue()


TRAINING = ["callbacks", "charlm_training", "optimizer_states", "lr_schedulers", "loops"]
CHECKPOINTS = [
    *(
        laughs,
        disguised,
        flip_bits,
        cut_short,
        splice,
        pickle_bytes,
        storage_sizes,
        opcodes,
        zip_bomb,
        content,
        content,
    ),
    billions,
]


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in a block that takes longer."""

    def interrupt(number: int, frame: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def peak() -> int:
    """The peak memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def sentence(message: str) -> None:
    """Raise unless `message` is readable: not empty, not long, and no traceback."""
    if not message.strip() or "Traceback" in message or len(message) > 3000:
        raise AssertionError(f"not one sentence: {message[:2000]!r}")


def open_checkpoint(path: Path, rng: random.Random) -> str:
    """Open a checkpoint like sample.py, and generate text with it. Returns "opened" or "refused"."""
    try:
        opened = load_checkpoint(path)
        LanguageModel(opened.network, opened.vocab, opened.normalisation).generate("", 3, seed=0)
    except UsageError as error:
        sentence(str(error).replace(str(path), "FILE"))
        return "refused"
    return "opened"


def train_small(folder: Path) -> None:
    """Train a small run in `folder`/run."""
    text = folder / "text.txt"
    words = random.Random(0)
    text.write_text("".join(words.choice("abcde fgh\n") for _ in range(1500)))
    overrides = [
        *("data=text", f"data.path={text}", "data.bptt=8", "data.batch_size=4", "model.hidden_size=16", "logger=none"),
        *("model.embedding_size=8", "trainer.max_epochs=1", "trainer.accelerator=cpu", "callbacks.samples.length=5"),
    ]
    run_job(overrides, folder / "run")


def run_job(overrides: list[str], folder: Path) -> tuple[int, str]:
    """Train like `train.py` with `overrides`, in `folder`. Returns the exit status and stderr."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err), exit_cleanly():
            experiment.run(*compose_job(overrides, folder))
    except SystemExit as end:
        return int(end.code or 0), err.getvalue()
    return 0, err.getvalue()


def fuzz_checkpoints(count: int, seed: int, folder: Path) -> Counter[str]:
    """Open `count` mutated checkpoints."""
    train_small(folder)
    data = (folder / "run/checkpoints/best.ckpt").read_bytes()
    results: Counter[str] = Counter()
    path = folder / "hostile.ckpt"
    for number in range(count):
        rng, kind = random.Random(f"{seed} {number}"), CHECKPOINTS[number % len(CHECKPOINTS)]
        path.write_bytes(kind(data, rng))
        with naming(f"{kind.__name__} {number}"):
            results[f"{kind.__name__}: {open_checkpoint(path, rng)}"] += 1
    return results


def fuzz_configs(count: int, seed: int, folder: Path) -> Counter[str]:
    """Resume `count` runs whose checkpoint has a hostile config, or hostile values in the state that resuming reads."""
    train_small(folder)
    run, fit = folder / "fuzz", experiment.fit
    results: Counter[str] = Counter()
    for number in range(count):
        rng, real = random.Random(f"{seed} {number}"), number % 20 == 0
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(folder / "run", run)
        tree = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
        settings = tree["charlm"]["config"]
        if number % 4 == 1:
            what, real = mutate(tree, rng, rng.choice(TRAINING)), True
        else:
            what = mutate(settings, rng)
        if isinstance(settings.get("trainer"), dict) and real:
            settings["trainer"]["max_epochs"] = 2
        experiment.fit = fit if real else lambda *arguments: None
        with naming(f"resumed {number} ({what})"):
            torch.save(tree, run / "checkpoints/last.ckpt")
            status, said = run_job([f"resume={run}"], run)
            if status:
                sentence(said)
            end = "trained" if not status else "made ready" if "no batch to train on" in said else "refused"
            results[f"resumed: {end}"] += 1
    return results


failures: list[str] = []


@contextmanager
def naming(label: str) -> Iterator[None]:
    """Record what goes wrong under the name `label`, so that the next file can be tried."""
    before = peak()
    try:
        with warnings.catch_warnings(), within(SECONDS):
            warnings.simplefilter("ignore")
            yield
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        failures.append(f"{label}: {type(error).__name__}: {str(error)[:300]} ({place.filename}:{place.lineno})")
    if Path(Executed.path).exists():
        failures.append(f"{label}: something was executed")
        Path(Executed.path).rmdir()
    if peak() > max(before, GIGABYTE):
        failures.append(f"{label}: took {peak() / GIGABYTE:.2f} GB")
    if len(failures) > 20:
        raise SystemExit("\n".join(failures))


def main() -> None:
    """Fuzz as the command line says. Exits with the failures, if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["checkpoints", "configs"])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        Executed.path = f"{temporary}/executed"
        fuzz = fuzz_checkpoints if arguments.what == "checkpoints" else fuzz_configs
        results = fuzz(arguments.count, arguments.seed, Path(temporary))
    print(json.dumps({**dict(sorted(results.items())), "peak megabytes": peak() // 2**20}, indent=2))
    if failures:
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
