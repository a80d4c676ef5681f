"""The format of a compressed file: a header of about a hundred bytes, then the range coder's bytes.

The first 4 bytes name the format, the next 4 are the CRC-32 of all that follows: whatever was cut off or changed is
noticed before anything is decoded. Numbers are little-endian, lengths and counts in 7-bit groups (LEB128).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from charlm.errors import UsageError

MAGIC = b"\x8fclm"
FORMAT = 1
FIXED = struct.Struct("<16s8sIB")  # checkpoint, digest, fingerprint, threads
MOST_STREAMS = 4096
BUILD = ("torch", "CPU capability", "device", "dtype", "constriction", "NumPy", "Python")


@dataclass(frozen=True)
class Header:
    """What a compressed file says about itself."""

    checkpoint: bytes  # the first 16 bytes of the SHA-256 of the checkpoint file
    digest: bytes  # the first 8 bytes of the SHA-256 of the original
    fingerprint: int  # CRC-32 of some of the network's probabilities, which differ from machine to machine
    threads: int  # PyTorch's, from 1 to 255
    characters: int
    streams: int
    method: str  # how the network adapts to the text; empty: not at all
    build: tuple[str, ...]  # the values of BUILD

    def pack(self, payload: bytes) -> bytes:
        """The whole file."""
        fixed = FIXED.pack(self.checkpoint, self.digest, self.fingerprint, self.threads)
        texts = [text.encode() for text in (self.method, "/".join(self.build))]
        counts = _number(self.characters) + _number(self.streams)
        rest = bytes([FORMAT]) + fixed + counts + b"".join(_number(len(text)) + text for text in texts) + payload
        return MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest


def unpack(data: bytes, name: str) -> tuple[Header, bytes]:
    """The header and the range coder's bytes of a file. Raises UsageError for anything but a whole file of ours."""
    if data[:4] != MAGIC:
        raise UsageError(f"{name} is not a .clm file: give one that --compress wrote")
    if len(data) < 9 or struct.unpack_from("<I", data, 4)[0] != zlib.crc32(data[8:]):
        raise UsageError(f"{name} is damaged: parts of it were cut off or changed, get the file again")
    if data[8] != FORMAT:
        raise UsageError(f"{name} has format {data[8]}, but this version of charlm reads {FORMAT}: compress it again")
    try:
        checkpoint, digest, fingerprint, threads = FIXED.unpack_from(data, 9)
        characters, at = _read_number(data, 9 + FIXED.size)
        streams, at = _read_number(data, at)
        method, at = _read_text(data, at)
        build, at = _read_text(data, at)
        names = tuple(build.split("/"))
        header = Header(checkpoint, digest, fingerprint, threads, characters, streams, method, names)
    except (struct.error, IndexError, UnicodeDecodeError):
        raise UsageError(f"{name} is damaged: its header makes no sense, get the file again") from None
    # A symbol takes at least 2**-24 bits, which bounds what a true file can hold.
    possible = header.characters <= (8 * len(data)) << 24 and 1 <= header.streams <= MOST_STREAMS
    if not possible or header.threads < 1 or len(header.build) != len(BUILD):
        raise UsageError(f"{name} is damaged: its header makes no sense, get the file again")
    return header, data[at:]


def read_header(data: bytes, name: str = "the file") -> Header:
    """The header of a compressed file. Raises UsageError if the file is damaged or not ours."""
    return unpack(data, name)[0]


def _number(value: int) -> bytes:
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where the next field begins."""
    value = 0
    for group in range(9):
        value |= (data[at + group] & 127) << 7 * group
        if data[at + group] < 128:
            return value, at + group + 1
    raise IndexError("a number of more than 63 bits")


def _read_text(data: bytes, at: int) -> tuple[str, int]:
    """The text at `at`, and where the next field begins."""
    length, at = _read_number(data, at)
    if length > len(data) - at:
        raise IndexError("a text that is longer than the file")
    return data[at : at + length].decode(), at + length
