"""``--compress`` and ``--decompress``: files by way of a trained model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from charlm.checkpoint.paths import find_checkpoint
from charlm.checkpoint.storage import replace_file
from charlm.errors import UsageError
from charlm.inference.clm_file import read_header
from charlm.inference.compression import check_header, compress, decompress
from charlm.inference.compressors import Compressed, compare
from charlm.inference.entropy_coder import constriction
from charlm.inference.evaluation_options import EvaluationOptions
from charlm.inference.language_model import LanguageModel
from charlm.inference.methods import Methods, choose_methods
from charlm.inference.observer import NOBODY, Observer
from charlm.inference.stepwise import reproducible
from charlm.run.evaluate import Entry
from charlm.run.held_out import HeldOut

SUFFIX = ".clm"


@dataclass(frozen=True)
class Outcome:
    """What became of a file: the sizes in bytes, the characters, and the seconds it took.

    `bits` is the information in the text by the model, and `others` has the sizes by other compressors.
    """

    target: Path
    original: int
    compressed: int
    characters: int
    seconds: float
    bits: float | None = None
    others: tuple[tuple[str, int], ...] = ()

    def facts(self) -> dict[str, str]:
        """What is to be said, by name."""
        found = {"file": str(self.target), "original": f"{self.original:,} bytes"}
        found["compressed"] = f"{self.compressed:,} bytes, {8 * self.compressed / max(self.original, 1):.4f} bits/byte"
        if self.bits is not None:
            found["model"] = (
                f"{self.bits / 8:,.1f} bytes of information, {self.bits / max(self.characters, 1):.4f} bits/char"
            )
        for name, size in self.others:
            found[name] = f"{size:,} bytes"
        return found | {"speed": f"{self.characters / max(self.seconds, 1e-9):,.0f} characters/s"}


def targets(source: str, output: str | None, *, decompress: bool) -> tuple[Path, Path]:
    """The file to read and the one to write. Raises UsageError where one of them cannot be."""
    path = Path(source)
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise UsageError(f"{source} {what}: name a file to {'decompress' if decompress else 'compress'}")
    if output is None:
        if decompress and path.suffix != SUFFIX:
            raise UsageError(f"{source} does not end in {SUFFIX}: name the file to write with -o FILE")
        output = str(path.with_suffix("") if decompress else path.with_name(path.name + SUFFIX))
        if Path(output).exists():
            raise UsageError(
                f"there is a file {output} already: name another one with -o FILE, or the same to replace it"
            )
    target = Path(output)
    if target.exists() and target.samefile(path):
        raise UsageError(f"-o {output} is the file to read: name another one")
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise UsageError(f"-o {output} cannot be written: name a file in a folder that exists")
    return path, target


def checksum(checkpoints: Sequence[Path]) -> str:
    """The SHA-256 of a checkpoint, or of those of several."""
    digests = [hashlib.sha256(find_checkpoint(path).read_bytes()) for path in checkpoints]
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def adapted(model: LanguageModel, name: str, methods: Methods) -> LanguageModel:
    """The model with `methods`."""
    network = methods.apply(model.network, model.vocab, HeldOut(model, name))
    return LanguageModel(network, model.vocab, model.normalisation, model.config, model.corpus)


def compress_file(
    entry: Entry, paths: tuple[Path, Path], options: EvaluationOptions, streams: int, observer: Observer = NOBODY
) -> Outcome:
    """Compress a file with the model and the methods of `options`."""
    source, target = paths
    constriction()
    data, model = source.read_bytes(), entry.open()
    options = options.model_copy(update={"protocol": "stream" if streams == 1 else f"streams:{streams}"})
    methods = choose_methods(model.network, model.vocab, options, HeldOut(model, entry.name), observer)
    method = methods.model_dump_json(exclude_none=True) if methods != Methods() else ""
    model = adapted(model, entry.name, methods)
    observer.notify(f"compressing {source.name}")
    began = time.perf_counter()
    done = compress(
        model, data, checksum=checksum(entry.checkpoints), streams=streams, method=method, progress=observer.progress
    )
    seconds = time.perf_counter() - began
    replace_file(target, done.data)
    observer.notify("compressing with xz and zpaq")
    results = compare(b"", data, names=("xz", "zpaq"))
    others = tuple((result.name, result.unprimed) for result in results if isinstance(result, Compressed))
    return Outcome(target, len(data), len(done.data), done.characters, seconds, done.bits, others)


def decompress_file(entry: Entry, paths: tuple[Path, Path], observer: Observer = NOBODY) -> Outcome:
    """Decompress a file with the model, and the methods that the file names."""
    source, target = paths
    data = source.read_bytes()
    header = read_header(data, str(source))
    try:
        methods = Methods.model_validate_json(header.method) if header.method else Methods()
    except ValueError:  # pydantic's is one
        raise UsageError(f"{source} is damaged: it names a method that charlm does not have") from None
    trained, digest = entry.open(), checksum(entry.checkpoints)
    check_header(header, trained, digest, header.method, str(source))
    with reproducible(trained.network, header.threads):  # gradients may be measured
        model = adapted(trained, entry.name, methods)
    observer.notify(f"decompressing {source.name}")
    began = time.perf_counter()
    original = decompress(
        model,
        data,
        checksum=digest,
        method=header.method,
        name=str(source),
        progress=observer.progress,
    )
    seconds = time.perf_counter() - began
    replace_file(target, original)
    return Outcome(target, len(original), len(data), header.characters, seconds)
