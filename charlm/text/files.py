"""Find files, read them and decode them, with one clear sentence for whatever cannot be read."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from charlm.errors import UsageError
from charlm.text.download import shown

SNIFF = 8192  # a NUL byte among a file's first bytes marks it as binary, as git decides it

SLACK = 2**20  # read so much beyond a file's size; files in /proc say that theirs is 0


def walk(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """`folder` and every folder below it, each with what is in it and not hidden, except folders to walk into."""
    for parent, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if os.path.islink(Path(parent, name))]  # not followed: no loops
        yield Path(parent), [Path(parent, name) for name in names + links if not name.startswith(".")]


def expand_glob(pattern: Path) -> set[Path]:
    """The matches that are no folders. Unlike in ``glob.glob``, ``**`` follows no links, which could lead back up.

    The links to folders that it came by are among the matches.
    """
    if "**" not in pattern.parts:
        return {Path(match) for match in glob.glob(str(pattern)) if not os.path.isdir(match)}
    at = pattern.parts.index("**")
    inside = pattern.parts[at + 1 :] or ("*",)
    tops = [Path(top) for top in glob.glob(str(Path(*pattern.parts[:at]))) if os.path.isdir(top)]
    matches: set[Path] = set()
    for parent, others in (place for top in tops for place in walk(top)):
        matches |= {path for path in others if os.path.isdir(path)}
        matches |= expand_glob(Path(glob.escape(str(parent)), *inside))
    return matches


def is_regular_file(path: Path) -> bool:
    """Whether that is a regular file; a link that leads nowhere is not. Raises UsageError if it cannot be told."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        return False if os.path.islink(path) else _unreadable(error, path)


def join_texts(texts: Iterable[str]) -> str:
    """One text of many, with a line break after each that lacks one."""
    return "".join(text if text.endswith("\n") else text + "\n" for text in texts if text)


def read_bytes(path: Path) -> bytes:
    """All of a file. Raises UsageError for what is no file, and for a file that changes meanwhile."""

    def open_at_once(name: str, flags: int) -> int:  # whatever is there: a FIFO would wait for a writer
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        with open(path, "rb", opener=open_at_once) as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise UsageError(f"{shown(path)} is not a file: remove it, or put what comes out of it into a file")
            most = before.st_size + SLACK  # not to the end: one that always grows has none
            data = file.read(most) or b""  # None: it would have to wait, as for some files in /proc
            after = os.fstat(file.fileno())
    except OSError as error:
        _unreadable(error, path)
    except MemoryError:
        raise UsageError(f"{shown(path)} does not fit into memory: give less text") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) == most:
        raise UsageError(f"{shown(path)} changed while it was being read: start again when it is complete")
    return data


def _unreadable(error: OSError, path: Path | None = None) -> NoReturn:
    raise UsageError(f"{shown(path or error.filename)} cannot be read: {error.strerror or error}") from None


def decode(data: bytes, path: Path, encoding: str) -> str:
    """The text that `data` holds. Raises UsageError, with the offset, for bytes that are not `encoding`."""
    try:
        text = data.decode(encoding)
        text.encode()  # utf-7 and the like can make half a surrogate pair, which no file or terminal takes
    except LookupError:
        raise UsageError(f"data.encoding={shown(encoding)} is not an encoding that Python knows") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{shown(path)} is not {shown(encoding)}: byte 0x{data[error.start]:02X} at offset {error.start} does not "
            f"fit; say how the text is stored with data.encoding=, for example data.encoding=latin-1"
        ) from None
    except ValueError as error:  # codecs that are not for text, names that cannot be one
        raise UsageError(f"{shown(path)} cannot be read with data.encoding={shown(encoding)}: {shown(error)}") from None
    return text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")  # a byte order mark is not text
