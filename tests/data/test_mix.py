"""data=mix: batches with rows of several texts in a fixed ratio, and the state of each carried over."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from charlm.data.batch import IGNORE, Batch
from charlm.data.module import CharDataModule
from charlm.data.streams import stack
from charlm.errors import UsageError
from charlm.models.network import Network
from charlm.models.recurrent import GRU, LSTM
from charlm.text.corpus import Corpus
from charlm.text.sources import mix
from charlm.training.module import CharLM
from tests.helpers import SMALL, char_lm, data_module, run_train, summary, trainer


def corpus(*texts: str) -> Corpus:
    main, *extra = (Corpus(text, "made up", "0" * 64) for text in texts)
    return Corpus(main.text, main.source, main.sha256, (), tuple(extra))


def module(*texts: str, **options: object) -> CharDataModule:
    return data_module(corpus(*texts), **{"ratio": [3, 1], "val": 0.0, **options})


MAIN, EXTRA = "the quick brown fox jumps over the lazy dog " * 9, "0123456789 " * 11


def test_each_batch_has_the_ratio(text: str) -> None:
    data = module(MAIN, EXTRA)
    digits = set(data.vocab.encode("0123456789").tolist())
    for batch in data.train_dataloader():
        assert batch.x.shape[0] == 4
        for row in range(4):
            read = set(batch.x[row][batch.y[row] != IGNORE].tolist()) - set(data.vocab.encode(" ").tolist())
            assert (read <= digits) == (row == 3)


@pytest.mark.parametrize("family", [GRU, LSTM])
def test_the_carried_losses_are_those_of_each_text_read_unbroken(family: type[Network]) -> None:
    """Over three epochs: the main text starts again in each, the other continues until its own end."""
    torch.manual_seed(0)
    data = module(MAIN, EXTRA)
    network = family(len(data.vocab), 6, 8).double()
    lm = char_lm(network)
    lm.double()
    columns = [stack(data.pieces["train"], 3), stack(data.extra[0], 1)]
    unbroken = []
    for x, y in columns:
        logits = network(x.long()).logits
        unbroken.append(F.cross_entropy(logits.transpose(1, 2), y.long(), reduction="none").float())
    place, batches = [0, 0], len(data.train_dataloader())
    for epoch in range(3):
        data._batches_before = lambda before=epoch * batches: before
        for i, batch in enumerate(data.train_dataloader()):
            expected = []
            for source, rows in enumerate((slice(0, 3), slice(3, 4))):
                if batch.first[rows][0]:
                    place[source] = 0
                width = int((batch.y[rows][0] != IGNORE).sum())
                expected.append(unbroken[source][:, place[source] : place[source] + width].flatten())
                place[source] += width
            assert lm.training_step(batch, i).item() == pytest.approx(torch.cat(expected).mean().item(), abs=1e-5)


def test_the_vocabulary_holds_every_text_and_only_the_main_one_is_validated() -> None:
    data = module(MAIN, EXTRA, val=0.2)
    assert set(MAIN + EXTRA) == set(data.vocab.chars)
    assert data.sizes["train"] + data.sizes["val"] == len(MAIN)
    targets = sum(int((batch.y != IGNORE).sum()) for batch in data.val_dataloader())
    assert targets == data.sizes["val"] - 1
    assert "0" in module(MAIN, EXTRA, vocab_from="train").vocab.chars


@pytest.mark.parametrize("limit", [1.0, 0.5, 3])
def test_extra_texts_continue_from_epoch_to_epoch(tmp_path: Path, limit: float) -> None:
    data = module(MAIN, EXTRA * 40)
    seen: list[Tensor] = []

    class Watched(CharLM):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            seen.append(batch.x[3])
            return super().training_step(batch, batch_idx)

    lm = Watched(GRU(len(data.vocab), 6, 8), functools.partial(torch.optim.Adam, lr=1e-2))
    trainer(tmp_path, max_epochs=3, limit_val_batches=0, limit_train_batches=limit).fit(lm, datamodule=data)
    whole = stack(data.extra[0], 1)[0][0].long()
    read = torch.cat(seen)
    assert torch.equal(read, whole[: len(read)])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"ratio": None}, "data.ratio=null must have a number for each of the 2 texts"),
        ({"ratio": [1, 1, 1]}, "data.ratio="),
        ({"ratio": [2, 0]}, "data.ratio.1=0 must be at least 1"),
        ({"ratio": [2, 1]}, r"data.batch_size=4 must be a multiple of 3, the sum of data.ratio=\[2, 1\]"),
        ({"mode": "windows"}, "data.ratio=.* needs data.mode=streams"),
        ({"bptt_jitter": 2}, "data.ratio=.* needs .*data.bptt_jitter=0"),
        ({"batch_size": 4000}, "data.paths.0. has 396 characters for training, too few for its 3000 rows"),
    ],
)
def test_a_bad_option_is_refused(options: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        module(MAIN, EXTRA, **options)


def test_a_ratio_for_one_text_is_refused() -> None:
    with pytest.raises(UsageError, match="data.ratio=.*is for data=mix"):
        module(MAIN)


@pytest.mark.parametrize("paths", [[], ["one.txt"], "one.txt", 3, None, {"a": 1, "b": 2}])
def test_one_text_is_no_mix(paths: object) -> None:
    with pytest.raises(UsageError, match="data=mix needs two or more texts: data.paths="):
        mix(paths)


def test_a_missing_text_is_named_by_its_place(text_file: Path) -> None:
    with pytest.raises(UsageError, match=r"data.paths\[1\]=nowhere.txt"):
        mix([str(text_file), "nowhere.txt"])


def test_from_the_command_line(text_file: Path, tmp_path: Path) -> None:
    extra = tmp_path / "more.txt"
    extra.write_text(EXTRA)
    run = tmp_path / "run"
    run_train(
        *("data=mix", f"data.paths=[{text_file},{extra}]", "data.batch_size=8", "data.bptt=16", *SMALL),
        f"hydra.run.dir={run}",
    )
    assert summary(run)["corpus"] == "mix"
    text = text_file.read_text()
    main, rows = len(text) - int(0.1 * len(text)), 6
    assert summary(run)["characters"] > 2 * rows * ((main - 1) // rows)  # the main text twice, plus some of the other


def test_optimiser_steps_are_counted_over_the_main_text() -> None:
    data = module(MAIN, EXTRA * 30)
    assert len(data.train_dataloader()) == -(-((len(MAIN) - 1) // 3) // 8)
    assert len(list(data.train_dataloader())) == len(data.train_dataloader())


def test_two_epochs_with_one_seed_are_equal(tmp_path: Path) -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        data = module(MAIN, EXTRA)
        lm = char_lm(
            GRU(len(data.vocab), 6, 8), scheduler=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1)
        )
        trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(lm, datamodule=data)
        results.append([p.detach().clone() for p in lm.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
