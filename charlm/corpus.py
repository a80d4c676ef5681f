"""Find, download, check and read text.

Every function here returns a `Corpus`; `conf/data/*.yaml` chooses one by name. A corpus that cannot
be had raises `Unavailable`, a mistake of the user's a plain `UsageError`.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from charlm.errors import UsageError

SNIFF = 8192  # a NUL byte among a file's first bytes marks it as binary, as git decides it


class Unavailable(UsageError):
    """A known corpus is not on this machine and could not be downloaded."""


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
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Corpus(text, source, digest, tuple(notices))


def cache_dir() -> Path:
    """The user's cache folder for downloaded corpora."""
    import pooch

    return Path(pooch.os_cache("charlm"))


def download(filename: str, sha256: str, urls: Sequence[str], encoding: str = "utf-8") -> Corpus:
    """A known file: from `$CHARLM_DATA_DIR`, else the user cache, else from the first URL that works.

    A file whose SHA-256 differs from `sha256` is refused wherever it came from, with both sums.
    Raises `Unavailable` when no URL answers.
    """
    folders = [Path(folder) for folder in [os.environ.get("CHARLM_DATA_DIR")] if folder] + [cache_dir()]
    for path in (folder / filename for folder in folders):
        if path.is_file():
            data = _bytes(path)
            found = hashlib.sha256(data).hexdigest()
            if found != sha256:
                raise UsageError(
                    f"{path} is not the {filename} that is expected: its SHA-256 is {found}, not {sha256}; "
                    f"delete it to download it again"
                )
            return Corpus(_decode(data, path, encoding), str(path), sha256)
    path = _fetch(filename, sha256, urls)
    return Corpus(_decode(_bytes(path), path, encoding), str(path), sha256)


def _fetch(filename: str, sha256: str, urls: Sequence[str]) -> Path:
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    get = pooch.HTTPDownloader(progressbar=True, timeout=20)
    failures, refused = [], []
    for url in urls:
        try:
            return Path(pooch.retrieve(url, f"sha256:{sha256}", filename, cache_dir(), downloader=get))
        except ValueError as error:  # pooch's word for a wrong checksum, with both sums; it has deleted the file
            refused.append(f"{url}: {' '.join(str(error).split())}")
        except requests.exceptions.RequestException as error:
            status = f" {error.response.status_code}" if error.response is not None else ""
            failures.append(f"{url}: {type(error).__name__}{status}")
        except OSError as error:
            raise UsageError(f"{filename} cannot be stored in {cache_dir()}: {error.strerror or error}") from None
    if refused:
        raise UsageError(f"{filename} was refused: {'; '.join(refused)}")
    looked = f"it is not in CHARLM_DATA_DIR={folder}; " if (folder := os.environ.get("CHARLM_DATA_DIR")) else ""
    raise Unavailable(
        f"{looked}{filename} could not be downloaded ({'; '.join(failures)}): "
        f"put the file into a folder and set CHARLM_DATA_DIR to it, or use your own text with "
        f"data=text data.path=FILE"
    )


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
    folders; binary ones (a NUL byte near the start) are left out of folders and globs, with a notice.
    Line ends are kept as they are. `option` is what messages call the path.
    """
    if not path:
        raise UsageError(f"{option} is empty: give {option}=FILE, FOLDER or GLOB")
    path, encoding = str(path), str(encoding)  # Hydra reads data.path=2024 as a number
    try:
        where = Path(path).expanduser()
        is_file = where.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, a user that is not there
        raise UsageError(f"{option}={path} cannot be a file or folder: {error}") from None
    if is_file:
        text = _decode(_bytes(where), where, encoding)
        if not text:
            raise UsageError(f"{path} is empty: {option} needs a file with text in it")
        return _corpus(text, path)
    if where.is_dir():
        found = _walk(where)
    else:
        found = sorted(Path(p) for p in glob.glob(str(where), recursive=True) if Path(p).is_file())
        if not found:
            raise UsageError(f"there is no file, folder or glob match at {option}={path}")
    texts: list[str] = []
    binary: list[Path] = []
    wide = encoding.lower().replace("_", "-").startswith(("utf-16", "utf16", "utf-32", "utf32"))  # full of NULs
    for file in found:
        data = _bytes(file)
        if b"\0" in data[:SNIFF] and not wide:
            binary.append(file)
        else:
            texts.append(_decode(data, file, encoding))
    if not any(texts):
        raise UsageError(
            f"{option}={path} holds no text ({len(texts)} empty and {len(binary)} binary files): "
            f"point it at a folder with text files"
        )
    notices = [f"binary files left out: {len(binary)}, the first is {binary[0]}"] if binary else []
    return _corpus(_join(texts), f"{path} ({len(texts)} files)", notices)


def _walk(folder: Path) -> list[Path]:
    """All regular files below `folder` that are not hidden, sorted by path."""
    files = []
    for parent, folders, names in os.walk(folder):  # does not follow links to folders: no loops
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(path for path in files if path.is_file())


def _join(texts: Iterable[str]) -> str:
    return "".join(text if text.endswith("\n") else text + "\n" for text in texts if text)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None


def _decode(data: bytes, path: Path, encoding: str) -> str:
    try:
        text = data.decode(encoding)
    except LookupError:
        raise UsageError(f"data.encoding={encoding} is not an encoding that Python knows") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not {encoding}: byte 0x{data[error.start]:02X} at offset {error.start} does not fit; "
            f"say how the text is stored with data.encoding=, for example data.encoding=latin-1"
        ) from None
    except UnicodeError as error:  # codecs that are not for text
        raise UsageError(f"{path} cannot be read with data.encoding={encoding}: {error}") from None
    return text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")  # a byte order mark is not text
