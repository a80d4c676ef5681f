"""Find, download, check and read text.

Every function here returns a `Corpus`; `conf/data/*.yaml` chooses one by name. A corpus that cannot
be had raises `Unavailable`, a mistake of the user's a plain `UsageError`.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import stat
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import NoReturn

from charlm.download import Unavailable, fetch, shown
from charlm.errors import UsageError

SNIFF = 8192  # a NUL byte among a file's first bytes marks it as binary, as git decides it
SLACK = 2**20  # read so much beyond a file's size; files in /proc say that theirs is 0


@dataclass(frozen=True)
class Corpus:
    """A text, where it came from, and remarks for the user about how it was read.

    `sha256` is of the text in UTF-8, which for one UTF-8 file is the file's own checksum. `extra` are
    further texts to train on, beside the main one (see `mix`).
    """

    text: str
    source: str
    sha256: str
    notices: tuple[str, ...] = ()
    extra: tuple[Corpus, ...] = ()


def _corpus(text: str, source: str, notices: Sequence[str] = ()) -> Corpus:
    return Corpus(text, source, hashlib.sha256(text.encode()).hexdigest(), tuple(notices))


def cache_dir() -> Path:
    """The user's cache folder for downloaded corpora."""
    import pooch

    return Path(pooch.os_cache("charlm"))


def download(filename: str, sha256: str, urls: Sequence[str], encoding: str = "utf-8") -> Corpus:
    """A known file: from `$CHARLM_DATA_DIR`, else the user cache, else from the first URL that works.

    A file whose SHA-256 differs from `sha256` is refused wherever it came from, with both sums.
    `filename` is a plain name, without a folder. Raises `Unavailable` when no URL answers as it should.
    """
    _check_download(filename, sha256, urls)
    folders = [Path(folder) for folder in [os.environ.get("CHARLM_DATA_DIR")] if folder] + [cache_dir()]
    for path in (folder / filename for folder in folders):
        if os.path.exists(path):
            data = _bytes(path)
            found = hashlib.sha256(data).hexdigest()
            if found != sha256:
                raise UsageError(
                    f"{shown(path)} is not the {filename} that is expected: its SHA-256 is {found}, not {sha256}; "
                    f"delete it to download it again"
                )
            break
    else:
        data = fetch(filename, sha256, urls, cache_dir())
    return Corpus(_decode(data, path, encoding), shown(path), sha256)


def _check_download(filename: object, sha256: object, urls: object) -> None:
    """Refuse what a config may not say; above all a name that leads out of the cache."""
    name = filename if isinstance(filename, str) and filename.isprintable() else ""
    # PureWindowsPath knows both kinds of separator, and drives.
    if name in ("", "..") or PureWindowsPath(name).name != name:
        raise UsageError(f"data.corpus.filename={shown(filename)} must be the name of a file, without a folder")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise UsageError(f"data.corpus.sha256={shown(sha256)} must be 64 hexadecimal digits, in lower case")
    if isinstance(urls, str) or not isinstance(urls, Sequence) or not all(isinstance(url, str) for url in urls):
        raise UsageError(f"data.corpus.urls={shown(urls)} must be a list of addresses, as in [https://example.org/a]")


def python_docs() -> Corpus:
    """The English language reference that every CPython carries (`pydoc_data.topics`, 465 kB)."""
    from pydoc_data.topics import topics

    return _corpus("\n\n".join(topics[key].strip() for key in sorted(topics)) + "\n", "pydoc_data.topics")


def python_source() -> Corpus:
    """The standard library's own Python files (about 12 MB), tests and site-packages left out.

    Files go by their path below the library's folder, sorted.
    """
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    files = sorted(p for p in root.rglob("*.py") if skipped.isdisjoint(p.relative_to(root).parts))
    if not files:
        raise Unavailable(f"this Python has no source files in {root}: use another data=")
    return _corpus(_join(_decode(_bytes(p), p, "utf-8") for p in files), str(root))


def mix(paths: Sequence[str], encoding: str = "utf-8") -> Corpus:
    """Several texts, each as `read` reads it: the first is the main one, the others are its `extra`."""
    if not isinstance(paths, list | tuple) or len(paths) < 2:
        raise UsageError("data=mix needs two or more texts: data.paths=[FILE,FILE]; the first is the main one")
    corpora = [read(path, encoding, f"data.paths[{i}]") for i, path in enumerate(paths)]
    digest = hashlib.sha256("".join(corpus.sha256 for corpus in corpora).encode()).hexdigest()
    notices = tuple(notice for corpus in corpora for notice in corpus.notices)
    return Corpus(corpora[0].text, ", ".join(c.source for c in corpora), digest, notices, tuple(corpora[1:]))


def read(path: str, encoding: str = "utf-8", option: str = "data.path") -> Corpus:
    """The user's own text: a file, a folder (searched to the bottom), or a glob such as ``notes/*.md``.

    Files go in sorted order, joined by a line break where one lacks it. Hidden files are left out of
    folders; binary ones (a NUL byte near the start) are left out of folders and globs, with a notice, as
    are links to folders, links to nothing, and devices. Whatever else cannot be read is refused, not left out.
    Line ends are kept as they are. `option` is what messages call the path.
    """
    if not path:
        raise UsageError(f"{option} is empty: give {option}=FILE, FOLDER or GLOB")
    path, encoding = str(path), str(encoding)  # Hydra reads data.path=2024 as a number
    name = shown(path)
    try:
        where = Path(path).expanduser()
        is_file, is_folder, is_there = where.is_file(), where.is_dir(), where.exists()
        matches = set() if is_there else _glob(where)
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, a user that is not there
        raise UsageError(f"{option}={name} cannot be a file or folder: {shown(error)}") from None
    if is_file:
        text = _decode(_bytes(where), where, encoding)
        if not text:
            raise UsageError(f"{name} is empty: {option} needs a file with text in it")
        return _corpus(text, name)
    if is_there and not is_folder:
        raise UsageError(f"{option}={name} is neither a file nor a folder: put what comes out of it into a file")
    if is_folder:
        matches = {path for _, inside in _walk(where) for path in inside}
    found = {path for path in matches if _is_file(path)}
    odd = sorted(matches - found)
    if not found and not is_folder:
        raise UsageError(f"there is no file, folder or glob match at {option}={name}")
    texts: list[str] = []
    binary: list[Path] = []
    wide = encoding.lower().replace("_", "-").startswith(("utf-16", "utf16", "utf-32", "utf32"))  # full of NULs
    for file in sorted(found):
        data = _bytes(file)
        if b"\0" in data[:SNIFF] and not wide:
            binary.append(file)
        else:
            texts.append(_decode(data, file, encoding))
    others = f" and {len(odd)} that are no files" if odd else ""
    if not any(texts):
        raise UsageError(
            f"{option}={name} holds no text ({len(texts)} empty and {len(binary)} binary files){others}: "
            f"point it at a folder with text files"
        )
    notices = []
    if binary:
        notices.append(f"binary files left out: {len(binary)}, the first is {shown(binary[0])}")
    if odd:
        notices.append(f"links to folders, broken links and devices left out: {len(odd)}, the first is {shown(odd[0])}")
    return _corpus(_join(texts), f"{name} ({len(texts)} files)", notices)


def _walk(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """`folder` and every folder below it, each with what is in it and not hidden, except folders to walk into."""
    for parent, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if os.path.islink(Path(parent, name))]  # not followed: no loops
        yield Path(parent), [Path(parent, name) for name in names + links if not name.startswith(".")]


def _glob(pattern: Path) -> set[Path]:
    """The matches that are no folders. Unlike in ``glob.glob``, ``**`` follows no links, which could lead back up.

    The links to folders that it came by are among the matches.
    """
    if "**" not in pattern.parts:
        return {Path(match) for match in glob.glob(str(pattern)) if not os.path.isdir(match)}
    at = pattern.parts.index("**")
    inside = pattern.parts[at + 1 :] or ("*",)
    tops = [Path(top) for top in glob.glob(str(Path(*pattern.parts[:at]))) if os.path.isdir(top)]
    matches: set[Path] = set()
    for parent, others in (place for top in tops for place in _walk(top)):
        matches |= {path for path in others if os.path.isdir(path)}
        matches |= _glob(Path(glob.escape(str(parent)), *inside))
    return matches


def _is_file(path: Path) -> bool:
    """Whether that is a regular file; a link that leads nowhere is not. Raises UsageError if it cannot be told."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        return False if os.path.islink(path) else _unreadable(error, path)


def _join(texts: Iterable[str]) -> str:
    return "".join(text if text.endswith("\n") else text + "\n" for text in texts if text)


def _bytes(path: Path) -> bytes:
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


def _decode(data: bytes, path: Path, encoding: str) -> str:
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
