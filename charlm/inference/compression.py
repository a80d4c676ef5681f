"""Lossless compression: any bytes to a small file and back, by a language model and a range coder.

Bytes are read as UTF-8, other bytes as surrogates, so that every file is a text. The network predicts the characters
that it knows; the others (`charlm.inference.unknown`) and the capitals that a lower-case model does not see
(`charlm.inference.letter_case`) are coded beside them.

Network outputs differ in their last bits between builds, machines, batch sizes and numbers of threads, and a range
decoder needs every bit. So both sides take the same steps, one character of each stream at a time, and a file names the
build.

Shapes: S streams, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from charlm.errors import UsageError
from charlm.inference.clm_file import BUILD, MOST_STREAMS, Header, unpack
from charlm.inference.entropy_coder import Coder, Decoder, Encoder, Symbols
from charlm.inference.language_model import LanguageModel
from charlm.inference.letter_case import LetterCase
from charlm.inference.stepwise import Stepper, build, reproducible, usable_threads
from charlm.inference.unknown import CODE_POINTS, Flags, Urn
from charlm.options import checked
from charlm.text.vocab import code_points

Streams = Annotated[int, Field(ge=1, le=MOST_STREAMS)]
Checksum = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Progress = Callable[[int, int], None]  # called with the characters that the network has done, and with all of them

BLOCK = 4096  # characters, at most, that one symbol may declare as known
BLOCK_BITS = 12  # what such a symbol may cost at most: rarer ones would be rounded up
REPORT_EVERY = 64  # steps


class Compressed(NamedTuple):
    """A compressed file, and the information in the text by the model, in bits, before any rounding or header."""

    data: bytes
    bits: float
    characters: int


@checked
def compress(
    model: LanguageModel,
    data: bytes,
    *,
    checksum: Checksum,
    streams: Streams = 1,
    method: str = "",
    progress: Progress | None = None,
) -> Compressed:
    """Compress `data` into a file that `decompress` restores with the same model, on the same machine and build.

    `checksum` is the SHA-256 of the model's checkpoint, in hexadecimal. The text is cut into `streams` pieces that the
    network reads as one batch: faster, but each begins without context. `method` names a network that adapts its
    weights while it reads. Raises UsageError without the package constriction, and for a network with infinite outputs.
    """
    text = data.decode("utf-8", "surrogateescape")
    encoder = Encoder()
    with reproducible(model.network, usable_threads()) as threads:
        stepper = Stepper(model, streams)
        fingerprint = stepper.fingerprint()
        _code(encoder, stepper, model, len(text), text, progress)
    header = Header(
        checkpoint=bytes.fromhex(checksum)[:16],
        digest=hashlib.sha256(data).digest()[:8],
        fingerprint=fingerprint,
        threads=threads,
        characters=len(text),
        streams=streams,
        method=method,
        build=build(model.network),
    )
    return Compressed(header.pack(encoder.get_bytes()), encoder.bits, len(text))


@checked
def decompress(
    model: LanguageModel,
    data: bytes,
    *,
    checksum: Checksum,
    method: str = "",
    name: str = "the file",
    progress: Progress | None = None,
) -> bytes:
    """What `compress` was given; arguments as there. `name` is the file in error messages.

    Raises UsageError for anything but a whole file that was compressed with this model, method, build and machine.
    """
    header, payload = unpack(data, name)
    check_header(header, model, checksum, method, name)
    decoder = Decoder(payload, name)
    with reproducible(model.network, header.threads):
        stepper = Stepper(model, header.streams)
        if stepper.fingerprint() != header.fingerprint:
            raise UsageError(f"{name} was compressed on another machine, whose results differ: decompress it there")
        text = _code(decoder, stepper, model, header.characters, None, progress)
    try:
        found = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        found = None
    if found is None or hashlib.sha256(found).digest()[:8] != header.digest:
        raise UsageError(f"{name} does not give its original: decompress it on the machine that compressed it")
    return found


def check_header(header: Header, model: LanguageModel, checksum: str, method: str, name: str) -> None:
    """Raise UsageError unless the file was compressed with this model, method and build."""
    if header.checkpoint.hex() != checksum[:32]:
        raise UsageError(
            f"{name} needs the checkpoint whose SHA-256 begins with {header.checkpoint.hex()}, "
            f"but that of the one given begins with {checksum[:32]}: give the one that compressed it"
        )
    if header.method != method:
        needed, given = (f"the method {m!r}" if m else "a network that does not adapt" for m in (header.method, method))
        raise UsageError(f"{name} needs {needed}, not {given}: decompress it with the options that compressed it")
    pairs = [pair for pair in zip(BUILD, header.build, build(model.network), strict=True) if pair[1] != pair[2]]
    if pairs:
        theirs, ours = (", ".join(f"{pair[0]} {pair[side]}" for pair in pairs) for side in (1, 2))
        raise UsageError(f"{name} was compressed with {theirs}, but here is {ours}: use the build that compressed it")


def _code(
    coder: Coder, stepper: Stepper, model: LanguageModel, length: int, text: str | None, progress: Progress | None
) -> str:
    """Encode `text` of `length` characters, or decode and return it (None)."""
    vocab = model.vocab
    case = LetterCase(vocab.chars, model.normalisation.get("lowercase", False))
    folded = None if text is None else case.fold(text)
    if vocab.unk:
        ids = _code_ids(coder, stepper, length, None if folded is None else vocab.encode(folded, "unk"), progress)
        places = np.flatnonzero(ids == vocab.unk_id)
        urn = Urn()
        unknown = [_code_unknown(coder, urn, None if folded is None else folded[place]) for place in places.tolist()]
        codes = code_points(vocab.decode(ids)).astype("<u4")
        codes[places] = list(map(ord, unknown))
    else:
        places, unknown = _code_places(coder, length, folded, None if folded is None else vocab.knows(folded))
        known = None if folded is None else vocab.encode(folded, "skip")
        ids = _code_ids(coder, stepper, length - len(places), known, progress)
        codes = np.zeros(length, "<u4")
        is_known = np.ones(length, bool)
        is_known[places] = False
        codes[is_known] = code_points(vocab.decode(ids))
        codes[places] = list(map(ord, unknown))
    return case.code(coder, codes.tobytes().decode("utf-32-le", "surrogatepass"), text)


def _code_places(
    coder: Coder, length: int, text: str | None, known: NDArray[np.bool_] | None
) -> tuple[NDArray[np.int64], list[str]]:
    """Code which of `length` characters are unknown, and which characters these are."""
    targets = None if known is None else np.append(np.flatnonzero(~known), length)
    flags, urn = Flags(), Urn()
    places: list[int] = []
    unknown: list[str] = []
    at = 0
    while at < length:
        block = min(max(int(-BLOCK_BITS / math.log2(flags.probability(1))), 1), BLOCK, length - at)
        target = None if targets is None else np.array([min(targets[len(places)] - at, block)], np.int32)
        run = int(coder.choose(flags.runs(1, block)[None], target)[0])
        flags.add(1, times=run)
        at += run
        if run == block:
            continue
        flags.add(0)
        # Here, not after all flags: in a forged file, flags alone can be almost free.
        unknown.append(_code_unknown(coder, urn, None if text is None else text[at]))
        places.append(at)
        at += 1
    return np.array(places, np.int64), unknown


def _code_unknown(coder: Coder, urn: Urn, char: str | None) -> str:
    """Code a character that is not in the vocabulary."""
    slot = int(coder.choose(urn.probabilities[None], None if char is None else np.array([urn.slot(char)], np.int32))[0])
    found = urn.chars[slot - 1] if slot else chr(coder.uniform(CODE_POINTS, None if char is None else ord(char)))
    urn.add(found)
    return found


def _code_ids(coder: Coder, stepper: Stepper, length: int, ids: Symbols | None, progress: Progress | None) -> Symbols:
    """Code `length` ids by the network's predictions. The first streams may be one id longer than the others."""
    streams = stepper.streams
    steps, longer = divmod(length, streams)
    pieces = None if ids is None else np.array_split(ids, streams)
    every_S = None if pieces is None else np.stack([piece[:steps] for piece in pieces], 1)
    last = None if pieces is None else np.array([piece[-1] for piece in pieces[:longer]], np.int32)
    decoded = bytearray()  # grows with what is decoded, whatever length the file claims
    read_S = stepper.start
    for step in range(steps + (longer > 0)):
        rows = streams if step < steps else longer
        p_SV = stepper.step(read_S)
        wanted = None if every_S is None else every_S[step] if step < steps else last
        read_S = coder.choose(p_SV[:rows], wanted)
        decoded += read_S.tobytes()
        if progress and (step % REPORT_EVERY == 0 or (step + 1) * streams >= length):
            progress(min((step + 1) * streams, length), length)
    found = np.frombuffer(bytes(decoded), np.int32)
    together_S, rest = found[: steps * streams].reshape(steps, streams).T, found[steps * streams :]
    return np.concatenate([np.append(row, rest[i : i + 1]) for i, row in enumerate(together_S)])
