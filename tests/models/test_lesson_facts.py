"""The lesson's "facts of the data", on the real files."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from charlm.data.streams import stack
from charlm.data.windows import window_starts
from charlm.text.vocab import Vocab
from tests.helpers import data_module

CONF = Path(__file__).resolve().parents[2] / "conf" / "data"


def load(name: str) -> Any:
    config = OmegaConf.load(CONF / f"{name}.yaml")
    folder = os.environ.get("CHARLM_DATA_DIR", "")
    if not folder or not Path(folder, config.corpus.filename).is_file():
        pytest.skip(f"{config.corpus.filename} is not in $CHARLM_DATA_DIR ({folder or 'not set'})")
    return instantiate(config.corpus, _convert_="all"), OmegaConf.to_container(config)


@pytest.fixture(scope="module")
def nietzsche() -> Any:
    return load("nietzsche")[0]


@pytest.fixture(scope="module")
def stateful() -> Any:
    corpus, options = load("nietzsche")
    return data_module(corpus, **options)


@pytest.fixture(scope="module")
def tinyshakespeare() -> Any:
    corpus, options = load("tinyshakespeare")
    return corpus.text, data_module(corpus, **options)


def test_the_corpus_has_600893_characters_in_600901_bytes(nietzsche: Any) -> None:
    assert len(nietzsche.text) == 600_893
    assert len(nietzsche.text.encode()) == 600_901
    assert sum(not character.isascii() for character in nietzsche.text) == 8


def test_there_are_85_symbols_with_a_padding_symbol_at_0(nietzsche: Any) -> None:
    vocab = Vocab.build(nietzsche.text, pad=True)
    assert len(vocab) == 85
    assert len(vocab.chars) == len(set(nietzsche.text)) == 84
    assert vocab.encode(vocab.chars[0]).tolist() == [1]


def test_there_are_86_symbols_when_bytes_are_counted(nietzsche: Any) -> None:
    assert len(Vocab.build(nietzsche.text.encode().decode("latin-1"), pad=True)) == 86


def test_the_first_ten_indices(nietzsche: Any) -> None:
    vocab = Vocab.build(nietzsche.text, pad=True)
    assert vocab.encode(nietzsche.text)[:10].tolist() == [40, 42, 29, 30, 25, 27, 29, 1, 1, 1]
    assert vocab.decode([40, 42, 29, 30, 25, 27, 29, 1, 1, 1]) == "PREFACE\n\n\n"


@pytest.mark.parametrize(("length", "stride", "windows"), [(3, 3, 200_297), (8, 1, 600_885), (8, 8, 75_111)])
def test_the_number_of_windows(nietzsche: Any, length: int, stride: int, windows: int) -> None:
    starts = window_starts(len(nietzsche.text), length, stride)
    assert len(starts) == len(range(0, 600_893 - length, stride)) == windows


@pytest.mark.parametrize(("length", "stride", "windows"), [(3, 3, 200_297), (8, 1, 600_885), (8, 8, 75_111)])
def test_the_data_module_makes_those_windows(nietzsche: Any, length: int, stride: int, windows: int) -> None:
    data = data_module(nietzsche, mode="windows", bptt=length, stride=stride, val=0, batch_size=512, pad=True)
    loader = data.train_dataloader()
    assert len(loader.starts) == windows
    assert loader.rows.shape == (600_893 - length, length + 1)
    batch = next(iter(loader))
    assert batch.x.shape == batch.y.shape == (512, length)


def test_a_random_split_shares_out_the_lessons_windows(nietzsche: Any) -> None:
    data = data_module(nietzsche, mode="windows", split="random", bptt=8, stride=8, val=0.2, pad=True)
    assert sum(data.sizes.values()) == 75_111


def test_the_stateful_protocol_splits_493747_and_107146(stateful: Any) -> None:
    assert stateful.sizes == {"train": 493_747, "val": 107_146, "test": 0}
    assert len(stateful.ids_N) == 600_893
    assert stateful.vocab.decode(stateful.ids_N.numpy()[:7]) == "preface"


def test_the_stateful_protocol_has_56_symbols(stateful: Any, nietzsche: Any) -> None:
    vocab = stateful.vocab
    assert (len(vocab), vocab.pad, vocab.unk) == (56, True, True)
    counts = Counter(nietzsche.text.lower()[:493_747])
    assert vocab.chars == "".join(sorted(character for character, count in counts.items() if count >= 3))


def test_the_stateful_protocol_replaces_only_rare_characters(stateful: Any) -> None:
    assert 0 < int((stateful.ids_N == stateful.vocab.unk_id).sum()) < 50
    assert int((stateful.ids_N == 0).sum()) == 0


def test_the_stateful_protocol_gives_965_batches_of_64_times_8(stateful: Any) -> None:
    assert (stateful.batch_size, stateful.bptt) == (64, 8)
    loader = stateful.train_dataloader()
    assert len(loader) == 965
    batches = list(loader)
    assert len(batches) == 965
    assert {batch.x.shape for batch in batches[:-1]} == {(64, 8)}
    assert sum(batch.y.numel() for batch in batches) == 64 * (493_746 // 64)
    assert stateful.notices == []


def test_the_stateful_protocol_validates_on_every_character(stateful: Any) -> None:
    assert sum(int((batch.y >= 0).sum()) for batch in stateful.val_dataloader()) == 107_145


def test_the_streams_of_the_stateful_protocol_are_the_text(stateful: Any) -> None:
    x, y = stack(stateful.pieces["train"], 64)
    text = stateful.vocab.decode(stateful.pieces["train"].numpy())
    assert stateful.vocab.decode(x[1].numpy()) == text[7714 : 2 * 7714]
    assert stateful.vocab.decode(y[63].numpy()) == text[63 * 7714 + 1 : 64 * 7714 + 1]


def test_tinyshakespeare_has_1115394_characters_65_distinct(tinyshakespeare: Any) -> None:
    text, data = tinyshakespeare
    assert len(text) == 1_115_394
    assert text.isascii()
    assert len(data.vocab) == len(set(text)) == 65


def test_tinyshakespeare_has_nanogpts_split(tinyshakespeare: Any) -> None:
    _, data = tinyshakespeare
    assert data.sizes == {"train": 1_003_854, "val": 111_540, "test": 0}
    assert data.sizes["train"] == int(0.9 * 1_115_394)
