"""Documents, archives and images are known by their content, whatever their name."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import pytest

from charlm.errors import UsageError
from charlm.text.kinds import KINDS, MAGIC, OLE, kind_of
from charlm.text.sources import read


def zipped(*names: str, mimetype: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        if mimetype:
            archive.writestr("mimetype", mimetype)
        for name in names:
            archive.writestr(name, "<xml/>")
    return buffer.getvalue()


FILES = {
    "docx": zipped("[Content_Types].xml", "word/document.xml"),
    "xlsx": zipped("[Content_Types].xml", "xl/workbook.xml"),
    "pptx": zipped("ppt/presentation.xml"),
    "odt": zipped("content.xml", mimetype="application/vnd.oasis.opendocument.text"),
    "epub": zipped("OEBPS/a.xhtml", mimetype="application/epub+zip"),
    "zip": zipped("a.txt"),
    "doc": OLE + bytes(100) + "WordDocument".encode("utf-16-le"),
    "rtf": rb"{\rtf1\ansi Hello}",
    "pdf": b"%PDF-1.7\n%\xe2\xe3",
    "gz": gzip.compress(b"text"),
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
}


@pytest.mark.parametrize("kind", FILES)
def test_the_content_says_what_it_is(kind: str) -> None:
    assert kind_of(FILES[kind]) == kind


@pytest.mark.parametrize("kind", ["docx", "epub", "odt"])
def test_half_a_download_is_still_recognised_as_an_archive(kind: str) -> None:
    assert kind_of(FILES[kind][:80]) in (kind, "zip")


@pytest.mark.parametrize("data", [b"", b"PK is short for", b"<!DOCTYPE html><p>Hi", b"GIF89a is a format", b"%!PS"])
def test_text_is_not_mistaken(data: bytes) -> None:
    assert kind_of(data) is None


def test_every_kind_is_described() -> None:
    assert {kind for _, kind in MAGIC} <= set(KINDS)


@pytest.mark.parametrize("encoding", ["auto", "utf-8", "latin-1"])
@pytest.mark.parametrize("kind", FILES)
def test_by_path_it_is_refused_with_the_way_to_get_its_text(tmp_path: Path, kind: str, encoding: str) -> None:
    path = tmp_path / "my notes.txt"  # the name lies
    path.write_bytes(FILES[kind])
    with pytest.raises(UsageError) as caught:
        read(str(path), encoding)
    what, command = KINDS[kind]
    assert f"{path} is {what}, not text: get its text with a command such as {command.split()[0]} " in str(caught.value)
    assert f"'{path}'" in str(caught.value)  # quoted for the shell


def test_in_a_folder_they_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A\n")
    for name, kind in {"b.pdf": "pdf", "c": "pdf", "d.docx": "docx"}.items():
        (tmp_path / name).write_bytes(FILES[kind])
    (tmp_path / "e.bin").write_bytes(b"\1\0\2")
    found = read(str(tmp_path), "auto")
    assert found.text == "A\n" and found.files is not None
    assert found.notices == (f"left out, not text: 2 pdf, 1 binary, 1 docx; the first is {tmp_path / 'b.pdf'}",)
    assert found.files.describe(2) == "1 file, 2 bytes, 2 characters, 4 left out (2 pdf, 1 binary, 1 docx)"


def test_braces_in_a_name_are_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "notes {draft} {file}.pdf"
    path.write_bytes(b"%PDF-1.7\n\0")
    with pytest.raises(UsageError, match=r"pdftotext .*notes \{draft\} \{file\}\.pdf"):
        read(str(path), "auto")


def test_text_that_begins_like_a_magic_number_is_text() -> None:
    assert kind_of(b"BZhome is where the heart is") is None
