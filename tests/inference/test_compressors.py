"""Sizes by real compressors, compared with decompression and separate calls; zpaq is a script on the PATH."""

from __future__ import annotations

import bz2
import functools
import lzma
import os
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm.inference.compressors import ORDER, PPMD_MEMORY, Compressed, Compressor, LeftOut, compare, measure
from tests.helpers import of_extra

posix = pytest.mark.skipif(os.name != "posix", reason="the stand-in for zpaq is a shell script")


def noise(length: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices("abcdefghijklmnop \n", k=length))


TRAIN, SPLIT = noise(6000), noise(2000, 1)
BOTH = (TRAIN + SPLIT).encode()


@functools.cache
def results(train: str = TRAIN, split: str = SPLIT) -> dict[str, Compressed | LeftOut]:
    return {result.name: result for result in compare(train, split)}


fresh_results = results.__wrapped__  # for tests that change the world


def sizes(name: str, train: str = TRAIN, split: str = SPLIT) -> tuple[int, int]:
    result = results(train, split)[name]
    assert isinstance(result, Compressed), result
    return result.primed, result.unprimed


def without_zpaq(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("PATH", "")


def fake_zpaq(folder: Path, patch: pytest.MonkeyPatch, script: str) -> None:
    path = folder / "zpaq"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_xz_and_bzip2_equal_separate_calls() -> None:
    best = 9 | lzma.PRESET_EXTREME
    packed = [len(lzma.compress(data, preset=best)) for data in (BOTH, TRAIN.encode(), SPLIT.encode())]
    assert sizes("xz") == (packed[0] - packed[1], packed[2])
    packed = [len(bz2.compress(data)) for data in (BOTH, TRAIN.encode(), SPLIT.encode())]
    assert sizes("bzip2") == (packed[0] - packed[1], packed[2])


def test_ppmd_sizes_are_those_of_a_stream_that_decodes() -> None:
    pyppmd = of_extra("compress", "pyppmd")
    packed = []
    for data in (BOTH, TRAIN.encode(), SPLIT.encode()):
        encoder = pyppmd.Ppmd8Encoder(ORDER, PPMD_MEMORY)
        stream = encoder.encode(data) + encoder.flush()
        assert pyppmd.Ppmd8Decoder(ORDER, PPMD_MEMORY).decode(stream, len(data)) == data
        packed.append(len(stream))
    assert sizes("PPMd") == (packed[0] - packed[1], packed[2])


def test_zstd_is_at_its_highest_level() -> None:
    zstd = of_extra("compress", "backports.zstd") if sys.version_info < (3, 14) else of_extra("", "compression.zstd")
    packed = [len(zstd.compress(data, 22)) for data in (BOTH, TRAIN.encode(), SPLIT.encode())]
    assert sizes("zstd") == (packed[0] - packed[1], packed[2])


@pytest.mark.parametrize("name", ["xz", "bzip2", "zstd", "PPMd"])
def test_a_split_that_the_training_text_contains_is_cheap(name: str) -> None:
    if name == "PPMd":
        of_extra("compress", "pyppmd")
    if name == "zstd" and sys.version_info < (3, 14):
        of_extra("compress", "backports.zstd")
    result = results(split=TRAIN[1000:5000])[name]
    most = {"bzip2": 0.8, "PPMd": 0.2}.get(name, 0.05)  # bzip2 sorts contexts, it does not copy
    assert result.primed < most * result.unprimed


def test_the_window_covers_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings grow with the text; nothing is compressed here."""
    monkeypatch.setattr("charlm.inference.compressors.measure", lambda compressor, *texts: compressor)
    text = "x" * 150_000_000
    said = {found.name: found.settings for found in compare(text, text[:50_000_000]) if isinstance(found, Compressor)}
    assert said["xz"] == "preset 9 extreme, dictionary 191 MiB"
    assert said.get("zstd", "window 256 MiB").endswith("window 256 MiB")


def test_progress_is_told_before_each(monkeypatch: pytest.MonkeyPatch) -> None:
    without_zpaq(monkeypatch)
    order: list[str] = []
    for result in compare("ab", "cd", order.append):
        order.append(f"{result.name} done" if isinstance(result, Compressed) else result.name)
    assert order[:4] == ["xz", "xz done", "bzip2", "bzip2 done"] and order[-1] == "zpaq"


@settings(max_examples=10, deadline=None)
@given(st.text(st.characters(), max_size=20), st.text(st.characters(), max_size=20))
def test_any_text_has_a_size(train: str, split: str) -> None:
    for result in fresh_results(train, split).values():
        assert isinstance(result, LeftOut) or result.unprimed > 0


def test_lone_surrogates_and_empty_texts() -> None:
    assert sizes("bzip2", "", "\ud800") == (
        len(bz2.compress(b"\xed\xa0\x80")) - len(bz2.compress(b"")),
        len(bz2.compress(b"\xed\xa0\x80")),
    )
    assert sizes("xz", "", "")[0] == 0


def test_missing_packages_and_programs_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    without_zpaq(monkeypatch)
    for package in ("pyppmd", "backports.zstd", "compression.zstd"):
        monkeypatch.setitem(sys.modules, package, None)
    left = {name: result.why for name, result in fresh_results().items() if isinstance(result, LeftOut)}
    expected = {
        "PPMd": "not installed: pip install pyppmd",
        "zpaq": "not installed: there is no program zpaq on the PATH",
    }
    if sys.version_info < (3, 14):
        expected["zstd"] = "not installed: pip install backports.zstd"
    assert {name: left.get(name) for name in expected} == expected


def test_a_compressor_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data: bytes, level: int) -> bytes:
        raise MemoryError

    monkeypatch.setattr(bz2, "compress", fail)
    found = fresh_results()
    assert found["bzip2"] == LeftOut("bzip2", "failed: MemoryError") and isinstance(found["xz"], Compressed)


def test_measure_subtracts() -> None:
    found = measure(Compressor("none", "", len), b"abc", b"de")
    assert (found.primed, found.unprimed, found.note) == (2, 2, "")


@posix
def test_zpaq_is_run_on_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in copies its input, so sizes are those of the texts, plus what it always adds."""
    fake_zpaq(
        tmp_path, monkeypatch, f'echo "$@" >> {tmp_path}/log\npwd >> {tmp_path}/folders\n(cat text; echo +) > $2\n'
    )
    result = fresh_results("äb", "cde")["zpaq"]
    assert isinstance(result, Compressed) and (result.primed, result.unprimed) == (3, 5)
    assert (tmp_path / "log").read_text() == "add archive.zpaq text -m5\n" * 3
    assert result.settings == "-m5" and "64 MiB" in result.note
    assert not any(Path(folder).exists() for folder in (tmp_path / "folders").read_text().split())


@posix
@pytest.mark.parametrize(
    "script, why",
    [
        ("echo first >&2; echo out of memory >&2; exit 2", "failed: out of memory"),
        ("exit 3", "failed: it exited with status 3"),
        ("true", "failed: it exited with status 0"),
        ("exec sleep 60", "failed: it took more than 1 s"),
    ],
)
def test_zpaq_that_fails_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str) -> None:
    fake_zpaq(tmp_path, monkeypatch, script)
    assert list(compare("a", "b", zpaq_timeout=1))[-1] == LeftOut("zpaq", why)
