"""The functions that read a corpus; ``conf/data/*.yaml`` names one of them.

They raise `Unavailable` for a corpus that cannot be downloaded, and UsageError for whatever else is wrong.
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Annotated

from pydantic import AfterValidator, Field

from charlm.errors import OptionError, UsageError
from charlm.options import checked
from charlm.text.corpus import Corpus, make_corpus
from charlm.text.download import Unavailable, fetch, shown
from charlm.text.files import SNIFF, decode, expand_glob, is_regular_file, join_texts, read_bytes, walk


def cache_dir() -> Path:
    """The user's cache folder for downloaded corpora."""
    from platformdirs import user_cache_path

    return user_cache_path("charlm")


def _plain_name(name: str) -> str:
    # It must not lead out of the cache. PureWindowsPath knows drives and both separators.
    if not name.isprintable() or name in ("", "..") or PureWindowsPath(name).name != name:
        raise OptionError("", "must be the name of a file, without a folder", name)
    return name


def _checksum(digits: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise OptionError("", "must be 64 hexadecimal digits in lower case", digits)
    return digits


@checked
def download(
    filename: Annotated[str, AfterValidator(_plain_name), Field(description="Name of the file, without a folder.")],
    sha256: Annotated[str, AfterValidator(_checksum), Field(description="SHA-256 of the file.")],
    urls: Annotated[list[str], Field(description="Where to download it, tried in order.")],
    encoding: Annotated[str, Field(description="Encoding of the file.")] = "utf-8",
) -> Corpus:
    """A file with a known checksum, from ``$CHARLM_DATA_DIR``, else the user's cache, else the first URL that works.

    Raises UsageError for a file with another checksum, and `Unavailable` where no URL yields a file.
    """
    folders = [Path(folder) for folder in [os.environ.get("CHARLM_DATA_DIR")] if folder] + [cache_dir()]
    for path in (folder / filename for folder in folders):
        if os.path.exists(path):
            data = read_bytes(path)
            found = hashlib.sha256(data).hexdigest()
            if found != sha256:
                raise UsageError(
                    f"{shown(path)} is not the expected {filename}: its SHA-256 is {found}, not {sha256}; "
                    f"delete it to download it again"
                )
            break
    else:
        data = fetch(filename, sha256, urls, cache_dir())
    return Corpus(decode(data, path, encoding), shown(path), sha256)


def python_docs() -> Corpus:
    """Python's language reference, which is part of every CPython (`pydoc_data.topics`, 465 kB)."""
    from pydoc_data.topics import topics

    return make_corpus("\n\n".join(topics[key].strip() for key in sorted(topics)) + "\n", "pydoc_data.topics")


def python_source() -> Corpus:
    """The Python files of the standard library (about 12 MB) without tests and site-packages, sorted by path."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    files = sorted(p for p in root.rglob("*.py") if skipped.isdisjoint(p.relative_to(root).parts))
    if not files:
        raise Unavailable(f"this Python has no source files in {root}: use another data=")
    return make_corpus(join_texts(decode(read_bytes(p), p, "utf-8") for p in files), str(root))


def mix(paths: Sequence[str], encoding: str = "utf-8") -> Corpus:
    """Several texts, each from `read`: the first is the main one, the others are its `extra`."""
    if not isinstance(paths, list | tuple) or len(paths) < 2:
        raise UsageError("data=mix needs two or more texts: data.paths=[FILE,FILE]; the first is the main one")
    corpora = [read(path, encoding, f"data.paths[{i}]") for i, path in enumerate(paths)]
    digest = hashlib.sha256("".join(corpus.sha256 for corpus in corpora).encode()).hexdigest()
    notices = tuple(notice for corpus in corpora for notice in corpus.notices)
    return Corpus(corpora[0].text, ", ".join(c.source for c in corpora), digest, notices, tuple(corpora[1:]))


def read(path: str, encoding: str = "utf-8", option: str = "data.path") -> Corpus:
    """The user's own text: a file, a folder with all folders below it, or a glob such as ``notes/*.md``.

    Files are joined in sorted order, with a line break after each that does not end with one. Hidden files in folders
    are left out. So are, with a notice, binary files (a NUL byte near the start), links to folders, broken links and
    devices. Anything else that cannot be read raises UsageError. Line endings are kept. `option` is the path's name in
    messages.
    """
    if not path:
        raise UsageError(f"{option} is empty: give {option}=FILE, FOLDER or GLOB")
    path, encoding = str(path), str(encoding)  # Hydra reads data.path=2024 as a number
    name = shown(path)
    try:
        where = Path(path).expanduser()
        is_file, is_folder, is_there = where.is_file(), where.is_dir(), where.exists()
        matches = set() if is_there else expand_glob(where)
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, an unknown ~user
        raise UsageError(f"{option}={name} cannot be a file or folder: {shown(error)}") from None
    if is_file:
        text = decode(read_bytes(where), where, encoding)
        if not text:
            raise UsageError(f"{name} is empty: {option} needs a file with text in it")
        return make_corpus(text, name)
    if is_there and not is_folder:
        raise UsageError(f"{option}={name} is neither a file nor a folder: save its output to a file")
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
    others = f" and {len(odd)} that are not regular files" if odd else ""
    if not any(texts):
        raise UsageError(
            f"{option}={name} contains no text ({len(texts)} empty and {len(binary)} binary files){others}: "
            f"give a folder with text files"
        )
    notices = []
    if binary:
        notices.append(f"binary files left out: {len(binary)}, the first is {shown(binary[0])}")
    if odd:
        notices.append(f"links to folders, broken links and devices left out: {len(odd)}, the first is {shown(odd[0])}")
    return make_corpus(join_texts(texts), f"{name} ({len(texts)} files)", notices)
