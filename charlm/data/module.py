"""`CharDataModule`: an encoded text in, batches of ids out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import accumulate, islice
from typing import Any, Self

import pytorch_lightning as pl
import torch
from torch import Tensor

from charlm.data.batch import IGNORE, Batch
from charlm.data.mix import Mix
from charlm.data.options import DataOptions
from charlm.data.shares import Share
from charlm.data.sizes import choose_sizes
from charlm.data.splits import SPLITS, split_sizes
from charlm.data.streams import Streams, epoch_rng, stack, stack_all
from charlm.data.windows import Windows, window_starts
from charlm.errors import OptionError, UsageError
from charlm.options import Count, checked
from charlm.text.characters import visible
from charlm.text.corpus import Corpus
from charlm.text.encoded import EncodedText, encode


class RemainingBatches:
    """The batches of `epoch`, without the first `done` when iterated for the first time."""

    def __init__(self, epoch: Streams | Windows | Mix | Share, done: int) -> None:
        self.epoch, self.done = epoch, done

    def __len__(self) -> int:
        return len(self.epoch)

    def __iter__(self) -> Iterator[Batch]:
        # A generator, so that `done` is reset by the first batch: Lightning also calls iter() just to test for it.
        done, self.done = self.done, 0
        yield from islice(self.epoch, done, None)


class CharDataModule(pl.LightningDataModule):
    """Splits an encoded text and cuts the splits into batches.

    ``auto`` in `options` is replaced by numbers; `chosen` has the names of these options, `characters` the size of the
    training split that they were chosen for. `seed` determines the random split, the order of the windows and the
    jitter. Raises UsageError for a text that is too short for its options.
    """

    def __init__(self, text: EncodedText, options: DataOptions, seed: int) -> None:
        super().__init__()
        total, unit, random = len(text.ids), "characters", options.split == "random"
        # Windows are split after they were cut, for which their length has to be known.
        self.characters = total if random else split_sizes(total, options)["train"]
        self.chosen = {name for name in ("batch_size", "bptt") if getattr(options, name) == "auto"}
        options = choose_sizes(options, self.characters)
        assert isinstance(options.batch_size, int) and isinstance(options.bptt, int)
        self.text, self.options, self.seed = text, options, seed
        self.mode, self.batch_size, self.bptt = options.mode, options.batch_size, options.bptt
        self.vocab, self.normalisation, self.notices = text.vocab, text.normalisation, list(text.notices)
        self.ids_N, *self.extra = map(torch.from_numpy, (text.ids, *text.extra))
        self.shares = self._shares()

        if random:
            total, unit = len(window_starts(total, self.bptt, options.stride)), "windows"
        self.sizes = split_sizes(total, options, unit)
        for split in ("val", "test"):
            if (asked := getattr(options, split)) and not self.sizes[split]:
                self.notices.append(f"data.{split}={asked} of {total:,} {unit} is less than one: no {split} split")
        self.leaky = random and options.stride < self.bptt and self.sizes["train"] < total
        if self.leaky:
            self.notices.append(
                "data.split=random: validation windows overlap training windows, so the validation loss is too low "
                "(leaky); use data.split=contiguous for a fair one"
            )

        # The ids of each split, which a random one has not, and where its windows start in the whole text.
        self.pieces = {} if random else self._cut(self.ids_N)
        self.starts = self._window_starts() if self.mode == "windows" else {}
        self.rows = {split: self._rows(split) for split in SPLITS}
        self._done = 0  # batches of the first epoch that were trained on before a resume

    @classmethod
    def of(cls, corpus: Corpus, options: DataOptions, seed: int = 0) -> Self:
        """The corpus, encoded as `options` say and cut into batches."""
        whole = options.vocab_from == "all"
        text = encode(
            corpus,
            lowercase=options.lowercase,
            newlines=options.newlines,
            unicode=options.unicode,
            min_freq=options.min_freq,
            pad=options.pad,
            unk=options.unk,
            vocab_part=None if whole else lambda length: split_sizes(length, options)["train"],
        )
        return cls(text, options, seed)

    @classmethod
    def from_text(cls, text: str, *, seed: int = 0, **options: Any) -> Self:
        """The batches of a text in memory; `options` are those of `DataOptions`, such as ``bptt``.

        Batch size and bptt suit the size of the text unless `options` give them.
        """
        if not isinstance(text, str):
            raise UsageError(f"a text is a str, not {type(text).__name__}: decode bytes, and read files first")
        sha256 = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        corpus = Corpus(text, "a text in memory", sha256)
        return cls.of(
            corpus, DataOptions(**{"name": "text", "corpus": {}, "batch_size": "auto", "bptt": "auto", **options}), seed
        )

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {size:,}" for split, size in self.sizes.items() if size)
        return f"<{type(self).__name__}: {sizes} characters; batch size {self.batch_size}, bptt {self.bptt}>"

    def show_batch(self, batches: int = 2, rows: int = 3) -> str:
        """The first training batches as text: in each row, the characters read (x) and the next ones to predict (y).

        In streams, a row goes on in the next batch where it ended. White space has symbols; padding is left out.
        """
        lines = []
        for number, batch in enumerate(islice(self._loader("train"), batches), start=1):
            lines.append(f"batch {number} of {len(self._loader('train')):,}: {len(batch.x)} rows")
            for row, pair in enumerate(zip(batch.x[:rows], batch.y[:rows], strict=True), start=1):
                for name, ids in zip("xy", pair, strict=True):
                    shown = self.vocab.decode(ids[ids != IGNORE].cpu().numpy())
                    lines.append(f"  {f'row {row}' if name == 'x' else '':<8}{name}  {visible(shown)}")
        return "\n".join(lines)

    def _shares(self) -> list[int]:
        """The number of rows that each text gets in a training batch."""
        ratio, texts = self.options.ratio, 1 + len(self.extra)
        if texts == 1:
            if ratio is not None:
                raise OptionError("ratio", "is for data=mix: there is only one text", ratio)
            return [self.batch_size]
        if ratio is None or len(ratio) != texts:
            example = [3] + [1] * (texts - 1)
            raise OptionError("ratio", f"must have a number for each of the {texts} texts, as in {example}", ratio)
        return [self.batch_size * part // sum(ratio) for part in ratio]

    def _cut(self, whole: Tensor) -> dict[str, Tensor]:
        """The three splits of a tensor, one after another. What they leave is not used."""
        rest = len(whole) - sum(self.sizes.values())
        return dict(zip(SPLITS, whole.split([*self.sizes.values(), rest]), strict=False))

    def _window_starts(self) -> dict[str, Tensor]:
        """Where the windows of each split start in the whole text."""
        if self.options.split == "random":
            starts = window_starts(len(self.ids_N), self.bptt, self.options.stride)
            return self._cut(starts[torch.randperm(len(starts), generator=torch.Generator().manual_seed(self.seed))])
        begins = accumulate(self.sizes.values(), initial=0)
        return {
            split: begin + window_starts(size, self.bptt, self.options.stride)
            for begin, (split, size) in zip(begins, self.sizes.items(), strict=False)
        }

    def _rows(self, split: str) -> int:
        """The batch size, or fewer rows where a split is too short for it. 0: the split is empty."""
        size = self.sizes[split]
        if size == 0:
            return 0
        remedy = f"give more text, or change data.{'val' if split == 'train' else split} or data.bptt={self.bptt}"
        if self.mode == "windows":
            if len(self.starts[split]) == 0:
                raise UsageError(f"the {split} split is too short for one window of data.bptt: {remedy}")
            return self.batch_size
        if split == "train" and self.extra:
            self._check_mix()
            return self.batch_size
        if size < 2:
            raise UsageError(f"the {split} split has 1 character, too few to predict one from another: {remedy}")
        rows = min(self.batch_size, max(1, (size - 1) // self.bptt))
        if rows < self.batch_size and "batch_size" not in self.chosen:
            self.notices.append(
                f"the {split} split of {size:,} characters is too short for data.batch_size={self.batch_size} "
                f"streams of data.bptt={self.bptt}: its batch size is {rows}"
            )
        return rows

    def _check_mix(self) -> None:
        """Refuse texts that are too short for their rows."""
        for i, (rows, ids) in enumerate(zip(self.shares, [self.pieces["train"], *self.extra], strict=True)):
            short = f"data.paths[{i}] has {len(ids):,} characters for training"
            if len(ids) <= rows:
                raise UsageError(
                    f"{short}, too few for its {rows} rows of each batch: give more text, or lower "
                    f"data.batch_size={self.batch_size}"
                )
            if len(ids) <= rows * self.bptt:
                self.notices.append(
                    f"{short}, too few for its {rows} rows of data.bptt={self.bptt}: they are filled up with padding"
                )

    def _loader(self, split: str) -> Streams | Windows | Mix | Share:
        """The batches of `split`; of several processes, this one's part of them."""
        strategy: Any = None if self.trainer is None else self.trainer.strategy
        whole, world = self._whole(split), int(getattr(strategy, "world_size", 1))
        return whole if world == 1 else Share(whole, strategy.global_rank, world, evaluation=split != "train")

    def _whole(self, split: str) -> Streams | Windows | Mix:
        # The whole text goes to the device once; a batch is a slice of it.
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        training, rows = split == "train", self.rows[split]
        if self.mode == "windows":
            self.ids_N, starts = self.ids_N.to(device), self.starts[split].to(device)
            rng = self._epoch_rng if training and self.options.shuffle else None
            return Windows(self.ids_N, starts, self.bptt, rows, rng=rng)
        if training and self.extra:
            texts = zip([self.pieces["train"], *self.extra], self.shares, strict=True)
            sources = [Streams(*stack(ids.to(device), share), self.bptt) for ids, share in texts]
            return Mix(sources, self._batches_before)
        x, y = (stack if training else stack_all)(self.pieces[split].to(device), rows)
        return Streams(x, y, self.bptt, jitter=self.options.bptt_jitter if training else 0, rng=self._epoch_rng)

    def _epoch_rng(self) -> torch.Generator:
        return epoch_rng(self.seed, 0 if self.trainer is None else self.trainer.current_epoch)

    def _batches_before(self) -> int:
        return 0 if self.trainer is None else self.trainer.current_epoch * int(self.trainer.num_training_batches)

    def train_dataloader(self) -> Streams | Windows | Mix | Share | RemainingBatches:
        """One epoch of training batches; right after a resume, the first pass yields only what remains of the epoch."""
        loader, done, self._done = self._loader("train"), self._done, 0
        return RemainingBatches(loader, done) if done else loader

    def val_dataloader(self) -> Streams | Windows | Mix | Share | list[Any]:
        """The validation batches, the same in every epoch; none when the split is empty."""
        return self._loader("val") if self.rows["val"] else []

    def test_dataloader(self) -> Streams | Windows | Mix | Share | list[Any]:
        """The test batches; none when the split is empty."""
        return self._loader("test") if self.rows["test"] else []

    def state_dict(self) -> dict[str, Any]:
        """The number of batches in this epoch that have been trained on."""
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return {"batches": progress.processed % int(self.trainer.num_training_batches)}

    @checked
    def load_state_dict(self, state_dict: dict[str, Count]) -> None:
        """Resume the epoch after the batches that `state_dict` counts."""
        self._done = state_dict["batches"]

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Do nothing: batches are slices of a tensor that is on the device already."""
        return batch
