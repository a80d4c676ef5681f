"""Compression: any bytes come back, at the reported size, and nothing else is mistaken for a compressed file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import lzma
import math
import random
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from charlm.errors import UsageError
from charlm.inference import clm_file, compression, entropy_coder
from charlm.inference.clm_file import MAGIC, read_header, unpack
from charlm.inference.compression import compress, decompress
from charlm.inference.entropy_coder import LEAST, Encoder
from charlm.inference.language_model import LanguageModel
from charlm.inference.letter_case import LetterCase
from charlm.inference.unknown import unknown_nats
from charlm.models.ensemble import Ensemble
from charlm.models.network import Network, Output
from charlm.models.recurrent import GRU, LSTM
from charlm.models.state import State
from charlm.models.windowed import Windowed
from charlm.text.vocab import Vocab
from tests.helpers import of_extra

of_extra("compress", "constriction")

CHARS = "\n .abcdeghilnorstw"
THIS, OTHER = hashlib.sha256(b"this").hexdigest(), hashlib.sha256(b"other").hexdigest()
KINDS = ["plain", "unk", "pad and unk", "lower case", "lower case, unk", "window", "ensemble", "one symbol"]


@functools.cache
def model_of(kind: str, seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    vocab = Vocab("a" if kind == "one symbol" else CHARS, pad="pad" in kind, unk="unk" in kind)
    network: Network = GRU(len(vocab), 4, 16)
    if kind == "window":
        network = Windowed(network, 4)
    if kind == "ensemble":
        network = Ensemble([network, LSTM(len(vocab), 4, 8)])
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)  # predictions that differ
    return LanguageModel(network.eval(), vocab, {"lowercase": "lower" in kind})


def there_and_back(model: LanguageModel, data: bytes, streams: int = 1) -> compression.Compressed:
    done = compress(model, data, checksum=THIS, streams=streams)
    assert decompress(model, done.data, checksum=THIS) == data
    return done


def words(length: int, chars: str = CHARS) -> str:
    rng = random.Random(1)
    return "".join(rng.choice(chars) for _ in range(length))


@pytest.mark.parametrize("streams", [1, 3, 64])
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
@settings(max_examples=8, deadline=None)
def test_any_bytes_come_back(kind: str, streams: int, data: bytes) -> None:
    there_and_back(model_of(kind), data, streams)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(st.sampled_from(CHARS + CHARS.upper() + "éÉßſİΣσς\r\t0😀"), max_size=80), streams=st.integers(1, 9))
@settings(max_examples=8, deadline=None)
def test_texts_come_back(kind: str, streams: int, text: str) -> None:
    there_and_back(model_of(kind), text.encode(), streams)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [b"", b"a", b"\xff", b"A", bytes(range(256)), b"\xed\xa0\x80", b"\r\nA"])
def test_edges_come_back(kind: str, data: bytes) -> None:
    for streams in (1, 2, 300):
        there_and_back(model_of(kind), data, streams)


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_within_one_percent_of_the_reported_bits(kind: str) -> None:
    known = CHARS + CHARS.upper() if "lower" in kind else CHARS
    model, text = model_of(kind), words(1500, known) + "naïve\u4e2d" * 40
    for streams, times in ((1, 1), (64, 5)):
        done = there_and_back(model, text.encode() * times, streams)
        _, payload = unpack(done.data, "it")
        assert -1 < 8 * len(payload) - done.bits < 0.001 * done.bits + 64
        assert len(done.data) - len(payload) < 100


@pytest.mark.parametrize("kind", ["plain", "pad and unk", "window", "ensemble"])
def test_the_bits_are_the_network_s_and_those_of_the_unknown(kind: str) -> None:
    model, text = model_of(kind), words(500) + "é" + words(300) + "éü" + words(200)
    vocab = model.vocab
    # Without <unk>, the network does not see the unknown characters.
    ids = torch.from_numpy(vocab.encode("\n" + text, "unk" if vocab.unk else "skip")).long()
    with torch.no_grad():
        log_p = model.network.at_every_step(ids[None, :-1]).logits.double().log_softmax(-1)
    nats = -log_p[0].gather(1, ids[1:, None]).sum().item() + unknown_nats(text, vocab).sum()
    assert compress(model, text.encode(), checksum=THIS).bits == pytest.approx(nats / math.log(2), rel=1e-5)


def test_streams_start_alike_and_differ_in_length_by_one() -> None:
    model, text = model_of("plain"), words(32)
    ids = torch.from_numpy(model.vocab.encode(text)).long()
    nats = 0.0
    for piece in (ids[:11], ids[11:22], ids[22:]):
        x = torch.cat([torch.tensor([model.starter_id]), piece[:-1]])
        with torch.no_grad():
            nats -= model.network(x[None]).logits[0].double().log_softmax(-1).gather(1, piece[:, None]).sum().item()
    bits = (nats + unknown_nats(text, model.vocab).sum()) / math.log(2)
    assert compress(model, text.encode(), checksum=THIS, streams=3).bits == pytest.approx(bits, rel=1e-5)


def test_capitals_of_a_lower_case_model_cost_little() -> None:
    model = model_of("lower case")
    small = " ".join(["the red lion is hot.", "its head is so large.", "then i ate. now i rest."] * 60)
    sentences = re.sub(r"(^|\. )(\w)", lambda m: m[0].upper(), small).replace(" i ", " I ")
    with_capitals, without = (there_and_back(model, text.encode(), 16).bits for text in (sentences, small))
    assert 0 < with_capitals - without < 0.5 * len(re.findall("[A-Z]", sentences))


def test_only_capitals_that_can_be_restored_are_folded() -> None:
    capitals = "AB\N{KELVIN SIGN}ÉǅΣİ"
    assert LetterCase("Aabkéǆσςiß", True).fold(capitals) == "Ab\N{KELVIN SIGN}éǅσİ"  # A itself is known
    assert LetterCase("abkéǆσςiß", False).fold(capitals) == capitals


def test_a_trained_model_beats_zlib() -> None:
    text = "the cat sat on the mat. the dog ate the cat's hat. "
    torch.manual_seed(0)
    vocab = Vocab.build(text)
    network = GRU(len(vocab), 8, 32)
    ids = torch.from_numpy(vocab.encode(text * 4)).long()
    optimizer = torch.optim.Adam(network.parameters(), 2e-2)
    for _ in range(80):
        loss = nn.functional.cross_entropy(network(ids[None, :-1]).logits[0], ids[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model = LanguageModel(network.eval(), vocab, {"lowercase": False})
    rng = random.Random(0)
    shuffled = "".join(rng.choice(["the cat sat on the mat. ", "the dog ate the cat's hat. "]) for _ in range(60))
    payload = unpack(there_and_back(model, shuffled.encode()).data, "it")[1]
    assert len(payload) < 0.5 * len(zlib.compress(shuffled.encode(), 9))


class Adapts(Network):
    """A stand-in for dynamic evaluation: its output depends on how often it was called since it was reset."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network, self.calls = network, 0

    def at_every_step(self, x_BT: torch.Tensor, state: State | None = None) -> Output:
        self.calls = 0 if state is None else self.calls + x_BT.shape[1]
        with torch.enable_grad():
            logits, state, hidden = self.network.at_every_step(x_BT, state)
            assert logits.requires_grad
        return Output(logits.detach() * (1 + self.calls / 1000), state, hidden)

    forward = at_every_step

    def initial_state(self, batch_size: int) -> State:
        return self.network.initial_state(batch_size)


def test_a_network_that_adapts_is_named_and_comes_back() -> None:
    plain, text = model_of("unk"), words(300).encode()
    model = LanguageModel(Adapts(plain.network), plain.vocab, plain.normalisation)
    done = compress(model, text, checksum=THIS, method="sgd 0.3")
    assert decompress(model, done.data, checksum=THIS, method="sgd 0.3") == text
    assert done.bits != compress(plain, text, checksum=THIS).bits
    with pytest.raises(UsageError, match=r"^a\.clm needs the method 'sgd 0.3', not a network that does not adapt: "):
        decompress(plain, done.data, checksum=THIS, name="a.clm")
    with pytest.raises(UsageError, match="needs the method 'sgd 0.3', not the method 'sgd 0.2'"):
        decompress(model, done.data, checksum=THIS, method="sgd 0.2")


def test_threads_and_modes_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    model = model_of("plain")
    model.network.train()
    model.network.embedding.eval()
    done = compress(model, b"abc", checksum=THIS)
    assert read_header(done.data).threads == 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert decompress(model, done.data, checksum=THIS) == b"abc"
    assert seen == [3, 3, 3, 1]
    assert model.network.training and not model.network.embedding.training
    model.network.eval()


def test_progress_is_reported() -> None:
    calls: list[tuple[int, int]] = []
    text = words(1000)
    done = compress(model_of("plain"), text.encode(), checksum=THIS, streams=3, progress=lambda *c: calls.append(c))
    assert calls[-1] == (1000, 1000) and calls == sorted(set(calls)) and len(calls) > 3
    again: list[tuple[int, int]] = []
    decompress(model_of("plain"), done.data, checksum=THIS, progress=lambda *c: again.append(c))
    assert again == calls


def refusal(data: bytes, model: LanguageModel | None = None, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        decompress(model or model_of("plain"), data, **{"checksum": THIS, "name": "a.clm", **options})
    assert "\n" not in str(caught.value) and str(caught.value).startswith("a.clm ")
    return str(caught.value)


@pytest.fixture(scope="module")
def packed() -> bytes:
    return compress(model_of("plain"), words(150).encode() + b"\xff\xfe", checksum=THIS, streams=2).data


def test_a_thousand_corruptions_are_refused(packed: bytes) -> None:
    rng = random.Random(0)
    for _ in range(400):
        assert "damaged" in refusal(packed[: rng.randrange(4, len(packed))])
    for _ in range(400):
        at, flipped = rng.randrange(len(packed)), bytearray(packed)
        for _ in range(rng.randint(1, 3)):
            flipped[at + rng.randrange(min(40, len(packed) - at))] ^= 1 << rng.randrange(8)
        if bytes(flipped) != packed:
            assert re.search("damaged|not a .clm file", refusal(bytes(flipped)))
    for _ in range(100):
        assert "damaged" in refusal(packed + rng.randbytes(rng.randint(1, 9)))
    foreign = [b"", b"\x8f", b"a text\n", lzma.compress(b"abc"), zlib.compress(b"abc"), packed[1:], packed[:3]]
    for data in [*foreign, *(rng.randbytes(rng.randrange(300)) for _ in range(100))]:
        assert "a.clm is not a .clm file: give one that --compress wrote" == refusal(data)


def with_crc(rest: bytes) -> bytes:
    return MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest


def test_forged_files_with_the_right_checksum_are_refused(packed: bytes) -> None:
    rng, original, (header, payload) = random.Random(0), words(150).encode() + b"\xff\xfe", unpack(packed, "it")
    threads = 1 + struct.calcsize("<16s8sI")  # another number of them may well give the same
    for _ in range(200):
        changed = bytearray(packed[8:])
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        changed[threads] = 1
        try:  # the last bytes may not matter
            assert decompress(model_of("plain"), with_crc(bytes(changed)), checksum=THIS) == original
        except UsageError as error:
            assert "\n" not in str(error)
    for cut in range(len(packed) - len(payload) - 8):
        refusal(with_crc(packed[8 : 8 + cut]))
    for fields in ({"streams": 0}, {"streams": 10**6}, {"threads": 0}, {"build": ("x",)}, {"characters": 2**62}):
        assert "its header makes no sense" in refusal(dataclasses.replace(header, **fields).pack(payload))
    assert "does not give its original" in refusal(dataclasses.replace(header, digest=bytes(8)).pack(payload))
    assert "damaged" in refusal(header.pack(payload + b"x"))


@pytest.mark.parametrize("kind", KINDS)
def test_absurd_lengths_end_soon(kind: str) -> None:
    model, rng = model_of(kind), random.Random(0)
    for streams in (1, 8):
        header, _ = unpack(compress(model, b"ab", checksum=THIS, streams=streams).data, "it")
        for body in (b"", bytes(40), b"\xff" * 40, rng.randbytes(40)):
            assert "damaged" in refusal(dataclasses.replace(header, characters=10**8).pack(body), model)


def test_another_format_is_named(packed: bytes) -> None:
    assert "has format 9, but this version of charlm reads 1" in refusal(with_crc(b"\x09" + packed[9:]))


def test_another_checkpoint_is_refused_by_its_checksum(packed: bytes) -> None:
    assert f"begins with {THIS[:32]}, but that of the one given begins with {OTHER[:32]}" in refusal(
        packed, checksum=OTHER
    )


def test_another_build_is_refused(packed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9.9")
        assert re.search(r"was compressed with torch 2\S+, but here is torch 9\.9\.9: ", refusal(packed))
    double = LanguageModel(GRU(len(CHARS), 4, 16).double(), Vocab(CHARS), {"lowercase": False})
    assert "was compressed with dtype float32, but here is dtype float64" in refusal(packed, double)
    # A machine without another name, whose arithmetic differs.
    rounds = LanguageModel(model_of("plain", seed=1).network, Vocab(CHARS), {"lowercase": False})
    assert "on another machine, whose results differ" in refusal(packed, rounds)


def test_a_network_that_is_not_finite_cannot_compress() -> None:
    model = LanguageModel(GRU(len(CHARS), 4, 16).eval(), Vocab(CHARS), {"lowercase": False})
    nn.init.constant_(model.network.head.bias, math.nan)
    with pytest.raises(UsageError, match="not finite, so it cannot compress"):
        compress(model, b"abc", checksum=THIS)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "constriction", None)
    with pytest.raises(UsageError, match=r'compression needs .* pip install -e "\.\[compress\]"'):
        compress(model_of("plain"), b"abc", checksum=THIS)


@pytest.mark.parametrize("options", [{"streams": 0}, {"streams": 5000}, {"checksum": "abc"}, {"streams": 1.5}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        compress(model_of("plain"), b"abc", **{"checksum": THIS, **options})
    assert clm_file.MOST_STREAMS == 4096


def test_impossible_symbols_can_still_be_encoded() -> None:
    coder = Encoder()
    p_NV = np.array([[1.0, 0.0, 0.0]] * 20)
    coder.choose(p_NV, np.full(20, 2, np.int32))
    assert 8 * len(coder.get_bytes()) <= 20 * -math.log2(LEAST) + 64
    assert coder.bits == pytest.approx(20 * 1074) and entropy_coder.SLACK > 64


def test_a_file_is_the_same_each_time(packed: bytes) -> None:
    def again() -> Iterator[bytes]:
        for _ in range(3):
            yield compress(model_of("plain"), words(150).encode() + b"\xff\xfe", checksum=THIS, streams=2).data

    assert set(again()) == {packed}
