"""Where a text comes from.

Every function here returns a `Corpus`; `conf/data/*.yaml` chooses one by name. A corpus that cannot be downloaded
raises `Unavailable`; a mistake of the user's raises a plain `UsageError`.
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from charlm.errors import UsageError
from charlm.text.corpus import Corpus, make_corpus
from charlm.text.download import Unavailable, fetch, shown
from charlm.text.files import SNIFF, decode, expand_glob, is_regular_file, join_texts, read_bytes, walk


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
            data = read_bytes(path)
            found = hashlib.sha256(data).hexdigest()
            if found != sha256:
                raise UsageError(
                    f"{shown(path)} is not the {filename} that is expected: its SHA-256 is {found}, not {sha256}; "
                    f"delete it to download it again"
                )
            break
    else:
        data = fetch(filename, sha256, urls, cache_dir())
    return Corpus(decode(data, path, encoding), shown(path), sha256)


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

    return make_corpus("\n\n".join(topics[key].strip() for key in sorted(topics)) + "\n", "pydoc_data.topics")


def python_source() -> Corpus:
    """The standard library's own Python files (about 12 MB), tests and site-packages left out.

    Files go by their path below the library's folder, sorted.
    """
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    files = sorted(p for p in root.rglob("*.py") if skipped.isdisjoint(p.relative_to(root).parts))
    if not files:
        raise Unavailable(f"this Python has no source files in {root}: use another data=")
    return make_corpus(join_texts(decode(read_bytes(p), p, "utf-8") for p in files), str(root))


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
        matches = set() if is_there else expand_glob(where)
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, a user that is not there
        raise UsageError(f"{option}={name} cannot be a file or folder: {shown(error)}") from None
    if is_file:
        text = decode(read_bytes(where), where, encoding)
        if not text:
            raise UsageError(f"{name} is empty: {option} needs a file with text in it")
        return make_corpus(text, name)
    if is_there and not is_folder:
        raise UsageError(f"{option}={name} is neither a file nor a folder: put what comes out of it into a file")
    if is_folder:
        matches = {path for _, inside in walk(where) for path in inside}
    found = {path for path in matches if is_regular_file(path)}
    odd = sorted(matches - found)
    if not found and not is_folder:
        raise UsageError(f"there is no file, folder or glob match at {option}={name}")
    texts: list[str] = []
    binary: list[Path] = []
    wide = encoding.lower().replace("_", "-").startswith(("utf-16", "utf16", "utf-32", "utf32"))  # full of NULs
    for file in sorted(found):
        data = read_bytes(file)
        if b"\0" in data[:SNIFF] and not wide:
            binary.append(file)
        else:
            texts.append(decode(data, file, encoding))
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
    return make_corpus(join_texts(texts), f"{name} ({len(texts)} files)", notices)
