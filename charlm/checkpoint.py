"""What a checkpoint holds, and how to open one safely.

A charlm checkpoint is a Lightning checkpoint with one more entry, ``"charlm"``: the model's
specification, the vocabulary, the text normalisation, the composed config and the corpus checksum, all
plain values. Opening one runs no pickled code (``weights_only=True``) and builds nothing outside
``charlm.models.``.
"""

from __future__ import annotations

import importlib
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from charlm.errors import UsageError, refusing
from charlm.models import Network
from charlm.vocab import Vocab, check_normalisation

KEY = "charlm"
TRAINING = "charlm_training"  # carried state, running means and random states, to go on from
FORMAT = 1
FAMILIES = "charlm.models"
PARTS = ("model", "vocab", "normalisation", "config", "corpus", "run")
MADE = {  # what PyTorch 2.6 to 2.13 calls to read the tensors and dicts of a checkpoint
    "collections Counter",  # of a schedule that falls in steps
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
}
MOST_VALUES, MOST_DEPTH = 100_000, 32  # of a config
PREFIX = "network."  # where CharLM keeps the network's weights


def pack(
    model: Mapping[str, Any],
    vocab: Vocab,
    normalisation: Mapping[str, Any],
    config: Mapping[str, Any],
    corpus: Mapping[str, Any],
    run: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The checkpoint entry that makes a file self-contained. Everything must be plain values.

    `run` is what ``train.py`` needs to go on, besides the config.
    """
    return {
        "format": FORMAT,
        "model": dict(model),
        "vocab": vocab.to_dict(),
        "normalisation": dict(normalisation),
        "config": dict(config),
        "corpus": dict(corpus),
        "run": dict(run or {}),
    }


def defined(target: object, within: Iterable[str]) -> Any:
    """The public class or function that `target` names, if a module of the packages `within` defines it; else None.

    Nothing that such a module merely imports: ``charlm.corpus.os.system`` must not be reached.
    """
    module, _, name = str(target).rpartition(".")

    def inside(path: object) -> bool:
        return any(f"{path}.".startswith(f"{package}.") for package in within)

    if not inside(module) or name.startswith("_") or not all(part.isidentifier() for part in module.split(".")):
        return None
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    return found if inside(getattr(found, "__module__", None)) else None


def build_network(spec: Mapping[str, Any], vocab_size: int) -> Network:
    """Make a network from its specification: ``_target_`` and plain keyword arguments.

    Raises UsageError when `_target_` is not a network class that ``charlm.models`` itself defines, or
    when the class refuses the arguments.
    """
    target = spec.get("_target_")
    family = defined(target, [FAMILIES])
    if not isinstance(family, type) or not issubclass(family, Network) or family is Network:
        raise UsageError(f"model: {target!r} is not a network in {FAMILIES}.*: nothing else is built")
    arguments = {key: value for key, value in spec.items() if key != "_target_"}
    with refusing("model"):
        return family(vocab_size=vocab_size, **arguments)


@dataclass(frozen=True)
class Opened:
    """A checkpoint's contents. `network` is in evaluation mode, on the CPU."""

    network: Network
    vocab: Vocab
    normalisation: dict[str, Any]
    config: dict[str, Any]
    corpus: dict[str, Any]
    run: dict[str, Any]


def contents(path: Path) -> dict[str, Any]:
    """What a checkpoint file of PyTorch holds: plain values and tensors, whoever wrote it.

    No pickled code runs, and no more memory is taken than the file is long. Raises UsageError when it is missing,
    damaged or something else.
    """
    if not path.is_file():
        raise UsageError(f"there is no checkpoint at {path}: give --checkpoint FILE, or train one with train.py")
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\3\4":  # PyTorch would read it as something else, where a zip only looks at the end
                raise ValueError
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            pickle = pickle_name([entry.filename for entry in entries])
            # As PyTorch writes it: nothing compressed, so nothing is larger in memory than on the disk.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ValueError
            damaged = archive.testzip()  # PyTorch does not look at the check sums
            if damaged is None:
                check_pickle(archive.read(pickle))
        if damaged is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a damaged file may warn on its way to the error below
                content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged zip or pickle can raise anything
        raise UsageError(
            f"{path} is not a checkpoint that can be opened safely: it is cut short, damaged, or something else"
        ) from None
    if damaged is not None:
        raise UsageError(f"{path} is damaged: the check sum of its entry {damaged!r} is wrong")
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not a charlm checkpoint: it has no {KEY!r} entry")
    return content


def pickle_name(names: list[str]) -> str:
    """Which entry is the pickle that PyTorch will read.

    Raises ValueError for names that PyTorch, which takes large and small letters for the same, could mix up.
    """
    (folder,) = {name.partition("/")[0] for name in names}
    (pickle,) = [name for name in names if name.lower().endswith(".pkl")]
    if pickle != f"{folder}/data.pkl" or len({name.lower() for name in names}) != len(names):
        raise ValueError
    return pickle


def check_pickle(data: bytes) -> None:
    """Raise ValueError for a pickle that would call anything but what makes tensors and ordered dicts.

    ``weights_only=True`` alone lets more through, such as a bytearray of any size.
    """
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL":
            if argument not in MADE and not re.fullmatch(r"torch [A-Z][A-Za-z0-9]*Storage", str(argument)):
                raise ValueError
        elif opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
            raise ValueError


def read(path: str | Path) -> Opened:
    """Open a checkpoint on the CPU, whatever device wrote it.

    Raises UsageError when it is missing, damaged, not charlm's, or asks for something unsafe.
    """
    path = Path(path)
    content = contents(path)
    entry = content.get(KEY)
    if not isinstance(entry, dict):
        raise UsageError(f"{path} is not a charlm checkpoint: it has no {KEY!r} entry")
    if entry.get("format") != FORMAT:
        raise UsageError(f"{path} has checkpoint format {entry.get('format')!r}; this charlm reads {FORMAT}")
    parts: dict[str, Any] = {name: entry.get(name) for name in PARTS}
    parts["run"] = entry.get("run", {})  # older files have none; they only cannot be resumed
    parts["state_dict"] = content.get("state_dict")
    for name, part in parts.items():
        if not isinstance(part, dict) or not (name == "state_dict" or is_plain(part)):
            raise UsageError(f"{path} is damaged: its {name} is missing or not plain values")
    try:
        vocab, normalisation = Vocab.from_dict(parts["vocab"]), check_normalisation(parts["normalisation"])
        if not all(isinstance(key, str) for key in parts["state_dict"]):
            raise UsageError("its weights have names that are not text")
        weights = {key.removeprefix(PREFIX): w for key, w in parts["state_dict"].items() if key.startswith(PREFIX)}
        check_weights(weights, path.stat().st_size)
        # Shapes only, and no more parameters than the file has weights: a file cannot ask for more memory or
        # time than its own size warrants.
        with torch.device("meta"), at_most(len(weights), "its file holds"):
            network = build_network(parts["model"], len(vocab))
        for name, tensor in network.state_dict().items():
            if name in weights and weights[name].is_floating_point() != tensor.is_floating_point():
                raise UsageError(f"its weight {name!r} is of type {weights[name].dtype}")
        network.load_state_dict(weights, assign=True)
        if any(buffer.is_meta for buffer in network.buffers()):  # one that is made, not stored: a mask, say
            network = build_network(parts["model"], len(vocab))
            network.load_state_dict(weights)
    except UsageError as error:
        raise UsageError(f"{path} cannot be used: {error}") from None
    except (RuntimeError, OverflowError):
        raise UsageError(f"{path} cannot be used: its model and its weights do not fit together") from None
    return Opened(network.eval(), vocab, normalisation, *(parts[name] for name in PARTS[3:]))


def is_plain(value: object) -> bool:
    """Whether `value` is made of nothing but dicts with text keys, lists, text, numbers, truth values and None.

    And not of more than a config can be: a list that holds another ten times, which holds another ten times … takes
    few bytes in a file and no end of time to go through.
    """
    waiting: list[tuple[Any, int]] = [(value, 0)]
    for _ in range(MOST_VALUES):
        if not waiting:
            return True
        part, depth = waiting.pop()
        if type(part) is dict:
            if not all(type(key) is str for key in part):
                return False
            inside = list(part.values())
        elif type(part) in (list, tuple):
            inside = list(part)
        elif part is None or type(part) in (str, int, float, bool):
            continue
        else:
            return False
        if depth == MOST_DEPTH or len(inside) > MOST_VALUES:
            return False
        waiting += [(one, depth + 1) for one in inside]
    return False


def check_weights(weights: Mapping[str, Any], size: int) -> None:
    """Raise UsageError for weights that are not what a file of `size` bytes can hold.

    A tensor may claim any shape over a small memory (strides of 0), or none at all: such weights would ask for
    more memory as soon as they are used.
    """
    total = 0
    for name, tensor in weights.items():
        if (
            type(tensor) is not torch.Tensor
            or tensor.layout != torch.strided
            or tensor.device.type != "cpu"
            or tensor.is_quantized
            or not tensor.is_contiguous()
        ):
            raise UsageError(f"its weight {name!r} is not a plain tensor")
        total += tensor.nbytes
    if total > 2 * size:  # twice, because tied weights are stored once
        raise UsageError(f"its weights claim {total:,} bytes, more than the file's {size:,}")
    if len({tensor.dtype for tensor in weights.values()} - {torch.int64}) > 1:
        raise UsageError("its weights are of different precision")


@contextmanager
def at_most(count: int, limit: str) -> Iterator[None]:
    """Raise UsageError as soon as modules are given more than `count` parameters, as `limit` says."""
    left = count

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise UsageError(f"the model has more than the {count:,} parameter tensors that {limit}")

    handle = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        handle.remove()


def find(where: str | Path | None = None) -> Path:
    """The checkpoint file meant by `where`: a file, a run folder, or None for the newest run here.

    Of a run, ``best.ckpt`` goes before ``last.ckpt``. Raises UsageError when there is none.
    """
    if where is not None:
        path = Path(where)
        if not path.is_dir():
            return path
        found = [path / folder / f"{name}.ckpt" for folder in ("checkpoints", ".") for name in ("best", "last")]
        found = [file for file in found if file.is_file()]
        if not found:
            raise UsageError(f"{path} is a folder without checkpoints/best.ckpt: give --checkpoint FILE")
        return found[0]
    patterns = ("runs/*/checkpoints/*.ckpt", "sweeps/*/*/checkpoints/*.ckpt")
    newest = max((f for p in patterns for f in Path().glob(p)), key=lambda f: f.stat().st_mtime, default=None)
    if newest is None:
        raise UsageError("there is no run in runs/ or sweeps/ here: train one with train.py or give --checkpoint FILE")
    return find(newest.parent.parent)
