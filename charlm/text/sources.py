"""The functions that read a corpus; ``conf/data/*.yaml`` names one of them.

They raise `Unavailable` for a corpus that cannot be downloaded, and UsageError for whatever else is wrong.
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Annotated

from pydantic import AfterValidator, Field

from charlm.errors import OptionError, UsageError
from charlm.options import checked
from charlm.text.corpus import Corpus, Files, count_kinds, make_corpus
from charlm.text.download import Unavailable, fetch, shown
from charlm.text.encodings import AUTO, SNIFF
from charlm.text.files import decode, decode_any, expand_glob, is_regular_file, join_texts, read_bytes, walk
from charlm.text.kinds import kind_of, refusal


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
    source, files = ", ".join(c.source for c in corpora), sum((c.files or Files() for c in corpora), Files())
    return Corpus(corpora[0].text, source, digest, notices, tuple(corpora[1:]), files)


def read(path: str, encoding: str = "utf-8", option: str = "data.path") -> Corpus:
    """The user's own text: a file, a folder with all folders below it, or a glob such as ``notes/*.md``.

    With ``encoding="auto"`` each file's encoding is found on its own. Files are joined in sorted order, with a line
    break after each that does not end with one. Hidden files in folders are left out. So are, with a notice, files that
    are not text (a document, an archive, a NUL byte near the start), links to folders, broken links and devices.
    Anything else that cannot be read raises UsageError. Line endings are kept. `option` is the path's name in messages.
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
        return _read_file(where, name, encoding, option)
    if is_there and not is_folder:
        raise UsageError(f"{option}={name} is neither a file nor a folder: save its output to a file")
    if is_folder:
        matches = {path for _, inside in walk(where) for path in inside}
    found = {path for path in matches if is_regular_file(path)}
    odd = sorted(matches - found)
    if not found and not is_folder:
        raise UsageError(f"there is no file, folder or glob match at {option}={name}")
    return _read_files(sorted(found), odd, name, encoding, option)


def _read_file(path: Path, name: str, encoding: str, option: str) -> Corpus:
    data = read_bytes(path)
    if kind := kind_of(data):
        raise UsageError(f"{name} {shown(refusal(kind, path))}")
    decoded = decode_any(data, path) if encoding == AUTO else (decode(data, path, encoding), encoding)
    if decoded is None:
        raise UsageError(
            f"{name} is not text in any encoding that can be recognised: if it is text, give its encoding, as in "
            f"data.encoding=latin-1"
        )
    text, used = decoded
    if not text:
        raise UsageError(f"{name} is empty: {option} needs a file with text in it")
    return make_corpus(text, name, _encoding_notices([(path, used)], encoding), _files([used], len(data), []))


def _read_files(paths: Sequence[Path], odd: Sequence[Path], name: str, encoding: str, option: str) -> Corpus:
    texts: list[str] = []
    used: list[tuple[Path, str]] = []
    binary: list[tuple[Path, str]] = []
    size = 0
    wide = encoding.lower().replace("_", "-").startswith(("utf-16", "utf16", "utf-32", "utf32"))  # full of NULs
    for path in paths:
        data = read_bytes(path)
        kind = kind_of(data)
        if encoding == AUTO:
            decoded = None if kind else decode_any(data, path)
            if decoded and decoded[1] == "utf-8" and b"\0" in data[:SNIFF]:
                decoded = None
        elif kind or (b"\0" in data[:SNIFF] and not wide):
            decoded = None
        else:
            decoded = decode(data, path, encoding), encoding
        if decoded is None:
            binary.append((path, kind or "binary"))
        else:
            texts.append(decoded[0])
            used.append((path, decoded[1]))
            size += len(data)
    others = f" and {len(odd)} that are not regular files" if odd else ""
    kinds = [kind for _, kind in binary]
    if not any(texts):
        counts = f": {count_kinds(Counter(kinds))}" if set(kinds) - {"binary"} else ""
        raise UsageError(
            f"{option}={name} contains no text ({len(texts)} empty and {len(binary)} binary files{counts}){others}: "
            f"give a folder with text files"
        )
    notices = _encoding_notices(used, encoding)
    if binary:
        notices.append(f"left out, not text: {count_kinds(Counter(kinds))}; the first is {shown(binary[0][0])}")
    if odd:
        notices.append(f"links to folders, broken links and devices left out: {len(odd)}, the first is {shown(odd[0])}")
    files = _files([encoding for _, encoding in used], size, kinds)
    return make_corpus(join_texts(texts), f"{name} ({len(texts)} files)", notices, files)


def _files(encodings: Sequence[str], size: int, kinds: Sequence[str]) -> Files:
    others = Counter(name for name in encodings if name.lower() not in ("utf-8", "utf8", "utf-8-sig"))
    return Files(len(encodings), size, dict(others), dict(Counter(kinds)))


def _encoding_notices(used: Sequence[tuple[Path, str]], asked: str) -> list[str]:
    """Which files were not in UTF-8: the encoding that was found is a guess, which the user can check."""
    others = [f"{shown(path)} as {name}" for path, name in used if name != "utf-8"] if asked == AUTO else []
    if not others:
        return []
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return [f"not in UTF-8, read {', '.join(others[:3])}{more}; if that is wrong, give data.encoding="]
