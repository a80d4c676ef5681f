"""Find, read and decode files; whatever cannot be read raises a UsageError that says why."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from charlm.errors import UsageError
from charlm.text.download import shown
from charlm.text.encodings import find_encoding

MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"  # a byte order mark, once decoded
SLACK = 2**20  # bytes to read beyond a file's stated size, which is 0 in /proc


def walk(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """`folder` and every folder below it, each with its files and links. Hidden files and folders are left out."""
    for parent, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if os.path.islink(Path(parent, name))]  # not followed: they may form a loop
        yield Path(parent), [Path(parent, name) for name in names + links if not name.startswith(".")]


def expand_glob(pattern: Path) -> set[Path]:
    """The matches that are not folders.

    Unlike in ``glob.glob``, ``**`` does not follow links to folders, which may form a loop; it lists them as matches.
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
    """Whether `path` is a regular file; a broken link is not. Raises UsageError where this cannot be determined."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        return False if os.path.islink(path) else _unreadable(error, path)


def join_texts(texts: Iterable[str]) -> str:
    """Join texts, with a line break after each that does not end with one."""
    return "".join(text if text.endswith("\n") else text + "\n" for text in texts if text)


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises UsageError for anything but a regular file, and for one that is being written."""

    def open_at_once(name: str, flags: int) -> int:  # a FIFO would wait for a writer
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        with open(path, "rb", opener=open_at_once) as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise UsageError(f"{shown(path)} is not a regular file: remove it, or save its output to a file")
            most = before.st_size + SLACK  # a limit, because a file that keeps growing has no end
            data = file.read(most) or b""  # None where reading would block, as for some files in /proc
            after = os.fstat(file.fileno())
    except OSError as error:
        _unreadable(error, path)
    except MemoryError:
        raise UsageError(f"{shown(path)} does not fit into memory: use a shorter text") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) == most:
        raise UsageError(f"{shown(path)} changed while it was being read: start again once it is complete")
    return data


def _unreadable(error: OSError, path: Path | None = None) -> NoReturn:
    raise UsageError(f"{shown(path or error.filename)} cannot be read: {error.strerror or error}") from None


def decode(data: bytes, path: Path, encoding: str) -> str:
    """Decode `data`. Raises UsageError, with the offset, where it is not valid `encoding`."""
    try:
        text = data.decode(encoding)
        text.encode()  # utf-7 and others can yield lone surrogates, which cannot be written to a file or terminal
    except LookupError:
        raise UsageError(f"data.encoding={shown(encoding)} is not an encoding that Python knows") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{shown(path)} is not {shown(encoding)}: byte 0x{data[error.start]:02X} at offset {error.start} is "
            f"invalid; data.encoding=auto finds each file's encoding"
        ) from None
    except ValueError as error:  # codecs that are not for text, names that no codec can have
        raise UsageError(f"{shown(path)} cannot be read with data.encoding={shown(encoding)}: {shown(error)}") from None
    return text.removeprefix(MARK)


def decode_any(data: bytes, path: Path) -> tuple[str, str] | None:
    """The text of `data` and the name of its encoding, or None for what is no text in any encoding that can be found.

    Raises UsageError for damaged UTF-8.
    """
    try:
        found = find_encoding(data)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{shown(path)} is UTF-8 with an invalid byte 0x{data[error.start]:02X} at offset {error.start}: save it "
            f"again as UTF-8, or give data.encoding="
        ) from None
    return found and (found[0].removeprefix(MARK), found[1])
