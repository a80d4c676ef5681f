"""Read a checkpoint file of unknown origin without running its code or using more memory than its size."""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from charlm.checkpoint.format import KEY
from charlm.errors import UsageError

ALLOWED_GLOBALS = {  # what PyTorch 2.6 to 2.13 calls to load the tensors and dicts of a checkpoint
    "collections Counter",  # in MultiStepLR
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
}

MOST_VALUES, MOST_DEPTH = 100_000, 32  # in a config


def read_safely(path: Path) -> dict[str, Any]:
    """The content of a PyTorch checkpoint file: plain values and tensors.

    No pickled code runs, and no more memory is used than the size of the file. Raises UsageError if the file is
    missing, damaged or something else.
    """
    if not path.is_file():
        raise UsageError(
            f"there is no checkpoint at {path}: give a run folder or a .ckpt file, or train one with train.py"
        )
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\3\4":  # PyTorch checks the start of a file, zipfile only its end
                raise ValueError
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            pickle = pickle_name([entry.filename for entry in entries])
            # PyTorch does not compress, so nothing may be larger in memory than on disk.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ValueError
            damaged = archive.testzip()  # PyTorch does not verify checksums
            if damaged is None:
                check_pickle(archive.read(pickle))
        if damaged is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a damaged file may also cause warnings
                content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged zip or pickle can raise anything
        raise UsageError(f"{path} cannot be opened safely: it is truncated, damaged, or not a checkpoint") from None
    if damaged is not None:
        raise UsageError(f"{path} is damaged: the checksum of its entry {damaged!r} is wrong")
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not a charlm checkpoint: it has no {KEY!r} entry")
    return content


def pickle_name(names: list[str]) -> str:
    """The name of the pickle that PyTorch will read.

    Raises ValueError for names that differ only in case, which PyTorch ignores.
    """
    (folder,) = {name.partition("/")[0] for name in names}
    (pickle,) = [name for name in names if name.lower().endswith(".pkl")]
    if pickle != f"{folder}/data.pkl" or len({name.lower() for name in names}) != len(names):
        raise ValueError
    return pickle


def check_pickle(data: bytes) -> None:
    """Raise ValueError for a pickle that calls anything else than what makes tensors and ordered dicts.

    ``weights_only=True`` alone allows more, such as a bytearray of any size.
    """
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL":
            if argument not in ALLOWED_GLOBALS and not re.fullmatch(r"torch [A-Z][A-Za-z0-9]*Storage", str(argument)):
                raise ValueError
        elif opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
            raise ValueError


def is_plain(value: object) -> bool:
    """Whether `value` consists of dicts with keys of text or integers, lists, text, numbers, booleans and None only.

    Also False for more values than a config can have: a list that contains another one ten times, and so on, takes few
    bytes in a file but forever to traverse.
    """
    waiting: list[tuple[Any, int]] = [(value, 0)]
    for _ in range(MOST_VALUES):
        if not waiting:
            return True
        part, depth = waiting.pop()
        if type(part) is dict:
            if not all(type(key) in (str, int) for key in part):
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
    """Raise UsageError for weights that a file of `size` bytes cannot contain.

    A tensor may claim any shape over little memory (strides of 0) or none at all, and would need more memory as soon as
    it is used. Weights may share memory, as tied ones do.
    """
    for name, tensor in weights.items():
        if (
            type(tensor) is not torch.Tensor
            or tensor.layout != torch.strided
            or tensor.device.type != "cpu"
            or tensor.is_quantized
            or tensor.nbytes > min(size, tensor.untyped_storage().nbytes())
        ):
            raise UsageError(f"its weight {name!r} is not a plain tensor")
