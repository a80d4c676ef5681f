from __future__ import annotations

import hashlib
import os
import socket
import sysconfig
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from charlm.errors import UsageError
from charlm.text import sources as corpus
from charlm.text.download import Unavailable
from charlm.text.sources import download, python_docs, python_source, read

DATA = "Ein Text.\r\nZweite Zeile: é 漢\n".encode()
WRONG = b"quite another text\n"
NAME = "some.txt"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Server:
    """Serves `files` on 127.0.0.1 and records the requests."""

    def __init__(self) -> None:
        self.files, self.asked = {}, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                body = outer.files.get(self.path)
                self.send_response(200 if body is not None else 404)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *arguments: Any) -> None:
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.httpd.serve_forever, args=(0.01,))
        self.thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.httpd.server_port}{path}"

    def close(self) -> None:
        self.httpd.shutdown()
        self.thread.join()
        self.httpd.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.close()


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    folder = tmp_path / "cache"
    monkeypatch.setattr(corpus, "cache_dir", lambda: folder)
    monkeypatch.delenv("CHARLM_DATA_DIR", raising=False)
    return folder


@pytest.fixture
def data_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Any) -> Any:
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("CHARLM_DATA_DIR", str(folder))
    return folder


@pytest.fixture
def dead_url(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as taken:  # bound but not listening, so every connection is refused
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/{NAME}"


# `download`.


def test_the_data_folder_goes_before_the_cache_and_the_network(data_dir: Any, cache: Any, server: Any) -> None:
    server.files["/a"] = DATA
    cache.mkdir()
    (data_dir / NAME).write_bytes(DATA)
    (cache / NAME).write_bytes(WRONG)
    found = download(NAME, sha(DATA), [server.url("/a")])
    assert found.text == DATA.decode()
    assert found.source == str(data_dir / NAME)
    assert found.sha256 == sha(DATA)
    assert found.notices == ()
    assert server.asked == []


@pytest.mark.parametrize("variable", [None, "", "elsewhere"])
def test_the_cache_goes_before_the_network(
    variable: Any, monkeypatch: pytest.MonkeyPatch, cache: Any, server: Any, tmp_path: Path
) -> None:
    if variable is not None:
        monkeypatch.setenv("CHARLM_DATA_DIR", variable and str(tmp_path / variable))
    server.files["/a"] = DATA
    cache.mkdir()
    (cache / NAME).write_bytes(DATA)
    found = download(NAME, sha(DATA), [server.url("/a")])
    assert (found.text, found.source, found.sha256) == (DATA.decode(), str(cache / NAME), sha(DATA))
    assert server.asked == []


def test_an_empty_variable_does_not_mean_the_working_folder(
    monkeypatch: pytest.MonkeyPatch, cache: Any, tmp_path: Path, server: Any
) -> None:
    (tmp_path / NAME).write_bytes(WRONG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHARLM_DATA_DIR", "")
    server.files["/a"] = DATA
    assert download(NAME, sha(DATA), [server.url("/a")]).text == DATA.decode()


def test_a_download_is_stored_in_the_cache_and_not_repeated(cache: Any, server: Any) -> None:
    server.files["/a"] = DATA
    for _ in range(2):
        found = download(NAME, sha(DATA), [server.url("/a")])
        assert (found.text, found.source, found.sha256) == (DATA.decode(), str(cache / NAME), sha(DATA))
    assert server.asked == ["/a"]
    assert [path.name for path in cache.iterdir()] == [NAME]
    assert (cache / NAME).read_bytes() == DATA


def test_the_first_working_url_ends_the_search(cache: Any, server: Any) -> None:
    server.files |= {"/a": DATA, "/b": DATA}
    download(NAME, sha(DATA), [server.url("/a"), server.url("/b")])
    assert server.asked == ["/a"]


def test_the_second_mirror_helps_where_the_first_answers_404(cache: Any, server: Any) -> None:
    server.files["/b"] = DATA
    assert download(NAME, sha(DATA), [server.url("/a"), server.url("/b")]).text == DATA.decode()
    assert server.asked == ["/a", "/b"]


def test_the_second_mirror_helps_where_the_first_is_dead(cache: Any, server: Any, dead_url: Any) -> None:
    server.files["/b"] = DATA
    assert download(NAME, sha(DATA), [dead_url, server.url("/b")]).text == DATA.decode()


def test_the_second_mirror_helps_where_the_first_has_another_file(cache: Any, server: Any) -> None:
    server.files |= {"/a": WRONG, "/b": DATA}
    assert download(NAME, sha(DATA), [server.url("/a"), server.url("/b")]).text == DATA.decode()
    assert (cache / NAME).read_bytes() == DATA


def test_a_download_with_another_checksum_is_refused_with_both_sums_and_not_kept(cache: Any, server: Any) -> None:
    server.files["/a"] = WRONG
    with pytest.raises(UsageError) as caught:
        download(NAME, sha(DATA), [server.url("/a")])
    assert sha(DATA) in str(caught.value) and sha(WRONG) in str(caught.value)
    assert server.url("/a") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_nothing_listening_is_unavailable_and_names_the_remedies(cache: Any, dead_url: Any) -> None:
    with pytest.raises(Unavailable) as caught:
        download(NAME, sha(DATA), [dead_url])
    for part in (NAME, dead_url, "CHARLM_DATA_DIR", "data=text data.path="):
        assert part in str(caught.value)


def test_unavailable_lists_every_url_that_failed(cache: Any, server: Any) -> None:
    urls = [server.url("/a"), server.url("/b")]
    with pytest.raises(Unavailable) as caught:
        download(NAME, sha(DATA), urls)
    assert all(url in str(caught.value) for url in urls)


def test_a_cache_that_cannot_be_written_is_named(cache: Any, server: Any) -> None:
    server.files["/a"] = DATA
    cache.write_text("a file where the folder should be")
    with pytest.raises(UsageError, match="cannot be stored in") as caught:
        download(NAME, sha(DATA), [server.url("/a")])
    assert str(cache) in str(caught.value)
    assert not isinstance(caught.value, Unavailable)


@pytest.mark.parametrize("place", ["data", "cache"])
def test_a_local_file_with_another_checksum_is_refused_with_both_sums(
    place: Any, data_dir: Any, cache: Any, tmp_path: Path, server: Any
) -> None:
    server.files["/a"] = DATA
    path = tmp_path / place / NAME
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(WRONG)
    with pytest.raises(UsageError) as caught:
        download(NAME, sha(DATA), [server.url("/a")])
    for part in (str(path), sha(DATA), sha(WRONG), "delete it"):
        assert part in str(caught.value)
    assert not isinstance(caught.value, Unavailable)
    assert path.read_bytes() == WRONG
    assert server.asked == []


def test_a_download_in_another_encoding(data_dir: Any) -> None:
    data = "été".encode("latin-1")
    (data_dir / NAME).write_bytes(data)
    found = download(NAME, sha(data), [], encoding="latin-1")
    assert (found.text, found.sha256) == ("été", sha(data))


def test_the_default_cache_folder_is_charlms_own() -> None:
    assert corpus.cache_dir().name == "charlm"


# `python_docs` and `python_source`.


def test_python_docs_is_the_language_reference_and_the_same_each_time() -> None:
    first, again = python_docs(), python_docs()
    assert first == again
    assert len(first.text) > 300_000
    assert 'The "if" statement is used for conditional execution' in first.text
    assert first.sha256 == sha(first.text.encode())


def test_python_docs_is_sorted_by_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    import pydoc_data.topics

    monkeypatch.setattr(pydoc_data.topics, "topics", {"b": "second\n", "a": "\nfirst", "c": "third"})
    assert python_docs().text == "first\n\nsecond\n\nthird\n"


def test_python_source_is_the_standard_library_and_the_same_each_time() -> None:
    first, again = python_source(), python_source()
    assert first == again
    assert len(first.text) > 5_000_000
    assert Path(threading.__file__).read_bytes().decode() in first.text
    assert first.sha256 == sha(first.text.encode())


def test_python_source_is_sorted_and_leaves_out_tests_and_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("b.py", "a/z.py", "a/b.py", "test/t.py", "a/tests/t.py", "site-packages/s.py", "a/__pycache__/c.py"):
        path = tmp_path / "test" / "lib" / name  # a parent folder called "test" must not matter
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "test" / "lib" / "data.txt").write_text("not Python")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: {"stdlib": str(tmp_path / "test" / "lib")}[name])
    assert python_source().text == "a/b.py\na/z.py\nb.py\n"


def test_python_without_sources_is_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(Unavailable, match="data="):
        python_source()


# `read`.


@pytest.mark.parametrize("data", [DATA, b"no newline at the end", b"\r\n\r\n", b"old Mac\rlines\r", b"nul \0 inside"])
def test_a_file_is_read_as_it_is(tmp_path: Path, data: Any) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    found = read(str(path))
    assert found.text.encode() == data
    assert (found.source, found.sha256, found.notices) == (str(path), sha(data), ())


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_a_folder_is_read_recursively_in_sorted_order(tmp_path: Path) -> None:
    write(tmp_path, {"b.txt": "B\n", "a/d/e.txt": "E\n", "a/c.txt": "C\n", "z.md": "Z\n", "a/é.txt": "É\n"})
    found = read(str(tmp_path))
    assert found.text == "C\nE\nÉ\nB\nZ\n"
    assert found.sha256 == sha(found.text.encode())
    assert found.source == f"{tmp_path} (5 files)"
    assert found.notices == ()


def test_files_are_joined_by_a_line_break_only_where_it_is_missing(tmp_path: Path) -> None:
    write(tmp_path, {"a": "A", "b": "B\r\n", "c": "", "d": "D\n\n", "e": "E"})
    assert read(str(tmp_path)).text == "A\nB\r\nD\n\nE\n"


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / ".top", {"a.txt": "A\n", ".b.txt": "B\n", ".git/c.txt": "C\n", "d/.e/f.txt": "F\n"})
    assert read(str(tmp_path / ".top")).text == "A\n"


def test_a_hidden_file_can_be_named(tmp_path: Path) -> None:
    write(tmp_path, {".a.txt": "A\n"})
    assert read(str(tmp_path / ".a.txt")).text == "A\n"


@pytest.mark.parametrize("pattern", ["", "*", "**/*"])
def test_binary_files_are_left_out_with_a_notice(tmp_path: Path, pattern: Any) -> None:
    write(tmp_path, {"a.txt": "A\n", "b.png": b"\x89PNG\0\xff", "c.bin": b"x" * 8191 + b"\0"})
    found = read(str(tmp_path / pattern))
    assert found.text == "A\n"
    (notice,) = found.notices
    assert notice == f"left out, not text: 1 binary, 1 png; the first is {tmp_path / 'b.png'}"


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8-sig"])
def test_binary_files_are_left_out_whatever_the_encoding(tmp_path: Path, encoding: Any) -> None:
    write(tmp_path, {"a.txt": "A\n".encode(encoding), "b.bin": b"RIFF\0\0\0\0"})
    found = read(str(tmp_path), encoding)
    assert found.text == "A\n"
    assert len(found.notices) == 1


def test_utf_16_is_not_mistaken_for_binary(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "été".encode("utf-16"), "b.txt": "漢\n".encode("utf-16")})
    found = read(str(tmp_path), "utf-16")
    assert (found.text, found.notices) == ("été\n漢\n", ())


def test_a_late_nul_does_not_make_a_file_binary(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": b"x" * 8192 + b"\0\n"})
    assert len(read(str(tmp_path)).text) == 8194


def test_a_link_back_up_does_not_loop(tmp_path: Path) -> None:
    write(tmp_path, {"a/b.txt": "B\n"})
    os.symlink(tmp_path, tmp_path / "a" / "up")
    os.symlink(tmp_path / "gone", tmp_path / "dangling.txt")
    assert read(str(tmp_path)).text == "B\n"


def test_a_glob_is_sorted_and_leaves_folders_out(tmp_path: Path) -> None:
    write(tmp_path, {"b.md": "B\n", "a.md": "A\n", "c.txt": "C\n", "d.md/e.txt": "E\n"})
    found = read(str(tmp_path / "*.md"))
    assert found.text == "A\nB\n"
    assert found.source == f"{tmp_path / '*.md'} (2 files)"


def test_two_stars_in_a_glob_match_recursively(tmp_path: Path) -> None:
    write(tmp_path, {"b.md": "B\n", "x/y/a.md": "A\n", "x/c.txt": "C\n"})
    assert read(str(tmp_path / "**" / "*.md")).text == "B\nA\n"


def test_an_existing_name_takes_precedence_over_a_glob(tmp_path: Path) -> None:
    write(tmp_path, {"a[1].txt": "brackets\n", "a1.txt": "none\n"})
    assert read(str(tmp_path / "a[1].txt")).text == "brackets\n"


@pytest.mark.parametrize("path", ["~/notes/a.txt", "~/notes", "~/notes/*.txt"])
def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, {"notes/a.txt": "A\n"})
    assert read(path).text == "A\n"


def test_the_home_folder_of_an_unknown_user_is_refused() -> None:
    with pytest.raises(UsageError, match="data.path"):
        read("~no-such-user-of-charlm/a.txt")


def test_line_ends_are_kept(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": b"a\r\nb\rc\nd\r\n", "b.txt": b"e\r\n"})
    assert read(str(tmp_path)).text == "a\r\nb\rc\nd\r\ne\r\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_a_byte_order_mark_is_dropped(tmp_path: Path, encoding: Any) -> None:
    mark = "" if encoding in ("utf-16", "utf-8-sig") else "\ufeff"  # these two write a BOM themselves
    write(tmp_path, {"a.txt": (mark + "aé").encode(encoding)})
    assert read(str(tmp_path / "a.txt"), encoding).text == "aé"


def test_only_the_mark_at_a_files_start_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "\ufeffA\ufeffA\n", "b.txt": "\ufeffB\n"})
    assert read(str(tmp_path)).text == "A\ufeffA\nB\n"


@pytest.mark.parametrize("name", ["gone.txt", "gone/", "*.gone", "[", "with\nbreak"])
def test_a_missing_path_is_named(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    with pytest.raises(UsageError) as caught:
        read(path)
    assert "data.path=" + path.replace("\n", "\\n") in str(caught.value)  # on one line


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path: Path, content: Any) -> None:
    write(tmp_path, {"a.txt": content})
    with pytest.raises(UsageError, match=r"a\.txt is empty: data\.path"):
        read(str(tmp_path / "a.txt"))


def test_a_folder_without_text_is_refused_with_what_it_contains(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "", "b.bin": b"\0", "c.bin": b"\0"})
    with pytest.raises(UsageError, match=r"contains no text \(1 empty and 2 binary files\)"):
        read(str(tmp_path))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.path=.* contains no text"):
        read(str(tmp_path))


@pytest.mark.parametrize("path", ["", None])
def test_an_empty_path_says_how_to_give_one(path: Any) -> None:
    with pytest.raises(UsageError, match="data.path=FILE"):
        read(path)


def test_a_path_that_hydra_reads_as_a_number_still_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path, {"2024/a.txt": "A\n"})
    monkeypatch.chdir(tmp_path)
    assert read(2024).text == "A\n"


def test_bytes_that_are_not_utf_8_are_named_with_the_remedy(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": b"voil" + "à la carte".encode("latin-1")})
    with pytest.raises(UsageError) as caught:
        read(str(tmp_path / "a.txt"))
    for part in (str(tmp_path / "a.txt"), "not utf-8", "0xE0", "offset 4", "data.encoding="):
        assert part in str(caught.value)
    assert read(str(tmp_path / "a.txt"), "latin-1").text == "voilà la carte"


def test_the_file_of_a_folder_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "fine\n", "b/c.txt": b"caf\xe9"})
    with pytest.raises(UsageError, match=r"c\.txt is not utf-8: byte 0xE9 at offset 3 .*data\.encoding="):
        read(str(tmp_path))
    assert read(str(tmp_path), "latin-1").text == "fine\ncafé\n"


@pytest.mark.parametrize("encoding", ["klingon", "", "rot13"])
def test_an_unknown_encoding_is_named(tmp_path: Path, encoding: Any) -> None:
    write(tmp_path, {"a.txt": "A\n"})
    with pytest.raises(UsageError, match=f"data.encoding={encoding} is not an encoding"):
        read(str(tmp_path / "a.txt"), encoding)


@pytest.mark.parametrize("encoding", [None, 1252.5, True])
def test_an_impossible_name_of_an_encoding_is_refused(tmp_path: Path, encoding: Any) -> None:
    write(tmp_path, {"a.txt": "A\n"})
    with pytest.raises(UsageError, match="data.encoding"):
        read(str(tmp_path / "a.txt"), encoding)


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file"), PermissionError(13, "Permission denied")])
@pytest.mark.parametrize("path", ["a.txt", "", "*.txt"])
def test_a_file_that_vanished_or_is_unreadable_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: Any, error: Any
) -> None:
    write(tmp_path, {"a.txt": "A\n"})

    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(UsageError, match=rf"a\.txt cannot be read: {error.strerror}"):
        read(str(tmp_path / path))


def test_unavailable_is_distinct_from_other_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(str(tmp_path / "gone"))
    assert not isinstance(caught.value, Unavailable)
    assert issubclass(Unavailable, UsageError)


# `read` with encoding="auto".


def test_a_latin_1_file_in_a_utf_8_folder_just_works(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "漢字 é\n", "b.txt": "Grüße\n".encode("latin-1"), "c.txt": "voilà\n".encode("utf-16")})
    found = read(str(tmp_path), "auto")
    assert found.text == "漢字 é\nGrüße\nvoilà\n"
    assert found.files is not None and found.files.encodings == {"latin-1": 1, "utf-16": 1}
    (notice,) = found.notices
    assert f"{tmp_path}/b.txt as latin-1, {tmp_path}/c.txt as utf-16; if that is wrong" in notice


def test_an_encoding_that_is_given_overrides_for_all_files(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "é\n", "b.txt": "é\n".encode("latin-1")})
    found = read(str(tmp_path), "latin-1")
    assert (found.text, found.notices) == ("Ã©\né\n", ())
    assert found.files is not None and found.files.encodings == {"latin-1": 2}


@pytest.mark.parametrize("path", ["a.txt", ""])
def test_damaged_utf_8_is_named_and_not_read_as_something_else(tmp_path: Path, path: str) -> None:
    write(tmp_path, {"a.txt": "Grüße, schöne\n".encode() + b"\xfc\n"})
    with pytest.raises(UsageError, match=r"a\.txt is UTF-8 with an invalid byte 0xFC at offset 17: save it again"):
        read(str(tmp_path / path), "auto")


def test_a_binary_file_of_no_known_kind_is_refused_by_path_and_left_out_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "A\n", "b.bin": b"\x80\0\xff\1" * 50})
    with pytest.raises(UsageError, match=r"b\.bin is not text in any encoding that can be recognised"):
        read(str(tmp_path / "b.bin"), "auto")
    assert read(str(tmp_path), "auto").text == "A\n"


def test_files_of_a_mix_are_counted_together(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "A\n", "b/c.txt": "é\n".encode("latin-1"), "b/d.pdf": b"%PDF-1.5"})
    found = corpus.mix([str(tmp_path / "a.txt"), str(tmp_path / "b")], "auto")
    assert found.files is not None
    assert found.files.describe(4) == "2 files, 4 bytes, 4 characters, 1 in latin-1, 1 left out (1 pdf)"
