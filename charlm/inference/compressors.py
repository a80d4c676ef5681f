"""What general-purpose compressors make of a text, for comparison with a language model.

Each is primed with the training text: the size of training text and split together, less that of the training text
alone, is what the split costs a compressor that has read the training text. Sizes include the container's overhead,
which nearly cancels. Sources: PPMd is Shkarin's variant I, "PPM: one step to practicality", DCC 2002, as in ``pyppmd``;
zpaq is Mahoney's context-mixing archiver.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from charlm.errors import first_line

MIB = 1 << 20
ORDER = 6  # PPMd's context, in bytes: fixed in advance at the customary value for text, not chosen on the split
PPMD_MEMORY = 1024 * MIB  # taken as it fills; a full model forgets all it has read. 30 MB of Python need less than 64
ZPAQ_TIMEOUT = 3600.0
NOTES = {
    "bzip2": "its blocks of 900 kB share nothing, so that at most the last 900 kB of the training text prime it",
    "zpaq": "its blocks of 64 MiB share nothing but repeats, so that at most the last 64 MiB prime it",
}


@dataclass(frozen=True)
class Compressed:
    """What one compressor makes of a split, in bytes. `seconds` is for all three texts that it compressed."""

    name: str
    settings: str
    primed: int
    """Bytes that the split adds to the compressed training text."""
    unprimed: int
    """Bytes of the split compressed alone."""
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class LeftOut:
    """A compressor that gave no result, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class Compressor:
    """A compressor with its settings for texts of a given size: `size` maps a text to its compressed size in bytes."""

    name: str
    settings: str
    size: Callable[[bytes], int]


def compare(
    train: str | bytes,
    split: str | bytes,
    started: Callable[[str], object] = lambda name: None,
    zpaq_timeout: float = ZPAQ_TIMEOUT,
    names: Collection[str] = (),
) -> Iterator[Compressed | LeftOut]:
    """Compress `split`, alone and after `train`, with every compressor (of `names`), one after another.

    Texts are those that the model reads, normalised, and are encoded as UTF-8. `started` is called with the name
    of each compressor before it runs. A compressor that is not installed, fails, or (zpaq) takes more than
    `zpaq_timeout` seconds for one text is left out.
    """
    before, data = (t if isinstance(t, bytes) else t.encode("utf-8", "surrogatepass") for t in (train, split))
    makers: dict[str, Callable[[int], Compressor]] = {
        "xz": _xz,
        "bzip2": _bzip2,
        "zstd": _zstd,
        "PPMd": _ppmd,
        "zpaq": lambda length: _zpaq(zpaq_timeout),
    }
    for name, make in makers.items():
        if names and name not in names:
            continue
        try:
            compressor = make(len(before) + len(data))
        except NotInstalled as error:
            yield LeftOut(name, str(error))
            continue
        started(name)
        try:
            yield measure(compressor, before, data)
        except Exception as error:  # libraries and programs of others, with texts of any size: one failure is no end
            yield LeftOut(name, f"failed: {first_line(error)}")


class NotInstalled(Exception):
    """A package or program that is not there. The message says so, and how to get it."""


def measure(compressor: Compressor, train: bytes, split: bytes) -> Compressed:
    """The sizes of `split` by one compressor. Raises what the compressor raises."""
    began = time.perf_counter()
    unprimed = compressor.size(split)
    primed = (compressor.size(train + split) if train else unprimed) - compressor.size(train)
    seconds = time.perf_counter() - began
    note = NOTES.get(compressor.name, "")
    return Compressed(compressor.name, compressor.settings, primed, unprimed, seconds, note)


def _xz(length: int) -> Compressor:
    dictionary = min(max(64 * MIB, length), 1536 * MIB)  # 64 MiB is the preset's, 1536 MiB liblzma's most
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]
    settings = f"preset 9 extreme, dictionary {math.ceil(dictionary / MIB)} MiB"
    return Compressor("xz", settings, lambda data: len(lzma.compress(data, filters=filters)))


def _bzip2(length: int) -> Compressor:
    return Compressor("bzip2", "level 9", lambda data: len(bz2.compress(data, 9)))


def _zstd(length: int) -> Compressor:
    if sys.version_info >= (3, 14):
        zstd = importlib.import_module("compression.zstd")
    else:
        zstd = _package("backports.zstd", "backports.zstd")
    parameters = zstd.CompressionParameter
    window = min(max(27, (length - 1).bit_length()), parameters.window_log.bounds()[1])  # 27 is that of level 22
    options = {parameters.compression_level: 22, parameters.window_log: window}
    settings = f"level 22 (ultra), window {1 << window - 20} MiB"
    return Compressor("zstd", settings, lambda data: len(zstd.compress(data, options=options)))


def _ppmd(length: int) -> Compressor:
    pyppmd: Any = _package("pyppmd", "pyppmd")

    def size(data: bytes) -> int:
        encoder = pyppmd.Ppmd8Encoder(ORDER, PPMD_MEMORY)
        return len(encoder.encode(data)) + len(encoder.flush())

    return Compressor("PPMd", f"variant I, order {ORDER}, memory {PPMD_MEMORY // MIB} MiB", size)


def _zpaq(timeout: float) -> Compressor:
    program = shutil.which("zpaq")
    if program is None:
        raise NotInstalled("not installed: there is no program zpaq on the PATH")
    program = str(Path(program).absolute())  # the PATH may be relative, and zpaq runs in another folder

    def size(data: bytes) -> int:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "text").write_bytes(data)
            command = [program, "add", "archive.zpaq", "text", "-m5"]
            try:
                done = subprocess.run(
                    command, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout, check=False
                )
            except subprocess.TimeoutExpired:
                raise RuntimeError(f"it took more than {timeout:,.0f} s") from None
            archive = Path(folder, "archive.zpaq")
            if done.returncode or not archive.is_file():
                said = done.stderr.decode(errors="replace").strip().splitlines()
                raise RuntimeError(said[-1] if said else f"it exited with status {done.returncode}")
            return archive.stat().st_size

    return Compressor("zpaq", "-m5", size)


def _package(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise NotInstalled(f"not installed: pip install {package}") from None
