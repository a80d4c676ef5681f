"""Files that are no text although people keep text in them: recognised by their first bytes, whatever their name."""

from __future__ import annotations

import io
import re
import shlex
import zipfile
from pathlib import Path

# Kind: what it is, and the command that gets text out of it ({file}, {stem}); "" where there is none to get.
KINDS = {
    "docx": ("a Word document", "pandoc {file} -t plain -o {stem}.txt"),
    "odt": ("an OpenDocument text", "pandoc {file} -t plain -o {stem}.txt"),
    "epub": ("an e-book in EPUB", "pandoc {file} -t plain -o {stem}.txt"),
    "rtf": ("a document in Rich Text Format", "pandoc {file} -t plain -o {stem}.txt"),
    "doc": ("an old Word document", "soffice --headless --convert-to txt:Text {file}"),
    "xlsx": ("an Excel workbook", "soffice --headless --convert-to csv {file}"),
    "ods": ("an OpenDocument spreadsheet", "soffice --headless --convert-to csv {file}"),
    "xls": ("an old Excel workbook", "soffice --headless --convert-to csv {file}"),
    "pptx": ("a PowerPoint presentation", "soffice --headless --convert-to pdf {file} && pdftotext {stem}.pdf"),
    "odp": ("an OpenDocument presentation", "soffice --headless --convert-to pdf {file} && pdftotext {stem}.pdf"),
    "ppt": ("an old PowerPoint presentation", "soffice --headless --convert-to pdf {file} && pdftotext {stem}.pdf"),
    "office": ("an old Microsoft Office file", "soffice --headless --convert-to pdf {file} && pdftotext {stem}.pdf"),
    "pdf": ("a PDF", "pdftotext {file} {stem}.txt"),
    "zip": ("a ZIP archive", "unzip {file} -d {stem}"),
    "gz": ("compressed by gzip", "gunzip -k {file}"),
    "bz2": ("compressed by bzip2", "bunzip2 -k {file}"),
    "xz": ("compressed by xz", "unxz -k {file}"),
    "zst": ("compressed by zstd", "unzstd {file}"),
    "7z": ("a 7-Zip archive", "7z x {file}"),
    "rar": ("a RAR archive", "unrar x {file}"),
    "png": ("a PNG image", "tesseract {file} {stem}"),
    "jpeg": ("a JPEG image", "tesseract {file} {stem}"),
    "gif": ("a GIF image", "tesseract {file} {stem}"),
    "tiff": ("a TIFF image", "tesseract {file} {stem}"),
    "sqlite": ("an SQLite database", "sqlite3 {file} .dump > {stem}.txt"),
    "audio": ("a sound file", ""),
    "video": ("a video", ""),
    "program": ("a program", ""),
}
MAGIC = (
    (b"%PDF-", "pdf"),
    (b"{\\rtf", "rtf"),
    (b"\x1f\x8b\x08", "gz"),
    (b"BZh91AY&SY", "bz2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zst"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!\x1a\x07", "rar"),
    (b"\x89PNG", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"SQLite format 3\0", "sqlite"),
    (b"ID3\x03", "audio"),
    (b"ID3\x04", "audio"),
    (b"OggS\0", "audio"),
    (b"fLaC\0", "audio"),
    (b"\x1aE\xdf\xa3", "video"),
    (b"\x7fELF", "program"),
)
ZIPPED = {"word/": "docx", "xl/": "xlsx", "ppt/": "pptx"}  # where Microsoft's formats keep their parts
MIMETYPES = {  # the content of the file "mimetype" in others
    b"application/epub+zip": "epub",
    b"application/vnd.oasis.opendocument.text": "odt",
    b"application/vnd.oasis.opendocument.spreadsheet": "ods",
    b"application/vnd.oasis.opendocument.presentation": "odp",
}
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # the container of Office until 2003; its parts have names in UTF-16
OLE_PARTS = {"WordDocument": "doc", "Workbook": "xls", "PowerPoint Document": "ppt"}


def kind_of(data: bytes) -> str | None:
    """The key in `KINDS` of a file with this content; None for what may be text."""
    if data.startswith(b"PK\x03\x04"):
        return _zipped(data)
    if data.startswith(OLE):
        return next((kind for name, kind in OLE_PARTS.items() if name.encode("utf-16-le") in data), "office")
    if data.startswith((b"GIF87a", b"GIF89a")) and b"\0" in data[:64]:
        return "gif"
    if data.startswith(b"RIFF") and data[8:12] in (b"WAVE", b"AVI "):
        return "audio" if data[8:12] == b"WAVE" else "video"
    if data[4:8] == b"ftyp" and b"\0" in data[:4]:
        return "video"
    return next((kind for magic, kind in MAGIC if data.startswith(magic)), None)


def _zipped(data: bytes) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            mimetype = archive.open("mimetype").read(100) if "mimetype" in names else b""
    except Exception:  # damaged: its first file still tells
        names, mimetype = [data[30:80].decode("latin-1")], data[38:90] if data[30:38] == b"mimetype" else b""
    found = next((kind for name, kind in MIMETYPES.items() if mimetype.strip() == name), None)
    found = found or next((kind for name, kind in ZIPPED.items() if any(n.startswith(name) for n in names)), None)
    return found or "zip"


def refusal(kind: str, path: Path) -> str:
    """The end of a sentence that begins with the file's name: what it is, and how to get text out of it."""
    what, command = KINDS[kind]
    if not command:
        return f"is {what}, not text: give a text file"
    stem, name = path.with_suffix("") if path.suffix else path.with_name(f"{path.name}-text"), shlex.quote
    parts = {"file": name(str(path)), "stem": name(str(stem))}
    how = re.sub(r"\{(file|stem)\}", lambda found: parts[found[1]], command)
    return f"is {what}, not text: get its text with a command such as {how}"
