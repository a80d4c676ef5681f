"""`CharDataModule`: a text in, batches of ids out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from charlm.checks import check_bool, check_choice, check_int
from charlm.data.batch import Batch
from charlm.data.mix import Mix
from charlm.data.splits import SPLITS, split_sizes
from charlm.data.streams import Streams, epoch_rng, stack, stack_all
from charlm.data.windows import Windows, window_starts
from charlm.errors import UsageError
from charlm.text.corpus import Corpus
from charlm.text.vocab import Vocab, normalise


class RemainingBatches:
    """The batches of `epoch`, when first gone through without the `done` first ones."""

    def __init__(self, epoch: Streams | Windows | Mix, done: int) -> None:
        self.epoch, self.done = epoch, done

    def __len__(self) -> int:
        return len(self.epoch)

    def __iter__(self) -> Iterator[Batch]:
        # A generator, so that this happens with the first batch: Lightning also calls iter() to see if it can.
        done, self.done = self.done, 0
        yield from islice(self.epoch, done, None)


class CharDataModule(pl.LightningDataModule):
    """Splits, encodes and batches a corpus.

    Arguments (the options of ``data`` in ``conf/train.yaml``):
        lowercase: normalise the text so.
        vocab_from: "all" takes the vocabulary from the whole text, "train" from the training split.
        min_freq, pad, unk: see `Vocab.build`.
        train, val, test: sizes of the splits, as fractions or counts of characters (of windows for
            ``split="random"``); `train` None takes the rest.
        mode: "streams" (contiguous, state carried) or "windows" (independent, shuffled).
        batch_size, bptt: rows and characters a batch; bptt is the length of a window too.
        bptt_jitter: streams: move every seam by up to so many characters, anew each epoch.
        stride: windows: from one window's start to the next.
        shuffle: windows: draw a new order each epoch, or keep that of the text.
        split: "contiguous", or for windows "random", which lets validation windows overlap training
            windows (leaky; for comparison with the lesson only).
        ratio: rows of each text in a training batch, for a corpus with `extra` texts: the main text's
            first. An epoch is one pass over the main text; the others have no validation or test split.
        seed: of the random order and the random split.

    Raises UsageError, naming the field, for options that cannot work.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        lowercase: bool = False,
        vocab_from: str = "all",
        min_freq: int = 1,
        pad: bool = False,
        unk: bool = False,
        train: float | None = None,
        val: float = 0.1,
        test: float = 0.0,
        mode: str = "streams",
        batch_size: int = 64,
        bptt: int = 64,
        bptt_jitter: int = 0,
        stride: int = 1,
        shuffle: bool = True,
        split: str = "contiguous",
        ratio: list[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.mode = check_choice("data.mode", mode, ("streams", "windows"))
        self.batch_size, self.bptt = check_int("data.batch_size", batch_size, 1), check_int("data.bptt", bptt, 1)
        self.stride, self.seed = check_int("data.stride", stride, 1), check_int("seed", seed, 0)
        self.jitter = check_int("data.bptt_jitter", bptt_jitter, 0)
        check_choice("data.vocab_from", vocab_from, ("all", "train"))
        self.random_split = check_choice("data.split", split, ("contiguous", "random")) == "random"
        self.shuffle = check_bool("data.shuffle", shuffle)
        self.shares = self._shares(ratio, len(corpus.extra))
        self._check_together(vocab_from)
        self.normalisation = {"lowercase": check_bool("data.lowercase", lowercase)}
        self.corpus, self.notices = corpus, list(corpus.notices)
        text = normalise(corpus.text, lowercase)

        total, unit = len(text), "characters"
        if self.random_split:
            total, unit = len(window_starts(len(text), self.bptt, self.stride)), "windows"
        if total == 0:
            raise UsageError(f"the text has {len(text)} characters, too few for data.bptt={self.bptt}: give more text")
        self.sizes = split_sizes(total, train, val, test, unit)
        for name, asked in {"val": val, "test": test}.items():
            if asked and not self.sizes[name]:
                self.notices.append(f"data.{name}={asked} of {total:,} {unit} comes to none: no {name} split")

        self.leaky = self.random_split and self.stride < self.bptt and self.sizes["train"] < total
        if self.leaky:
            self.notices.append(
                "data.split=random: validation windows overlap training windows, which flatters the loss (leaky); "
                "use data.split=contiguous for a fair one"
            )
        extra = [normalise(other.text, lowercase) for other in corpus.extra]
        self.vocab = Vocab.build(
            "".join([text[: self.sizes["train"]] if vocab_from == "train" else text, *extra]),
            min_freq=check_int("data.min_freq", min_freq, 1),
            pad=check_bool("data.pad", pad),
            unk=check_bool("data.unk", unk),
        )
        self.ids_N, *self.extra = map(self._encode, [text, *extra])
        # Of each split: its ids in order (a random split has no such piece), and where its windows begin.
        self.pieces = {} if self.random_split else self._cut(self.ids_N)
        self.starts = self._window_starts() if self.mode == "windows" else {}
        self.rows = {name: self._rows(name) for name in SPLITS}
        self._done = 0  # batches of the first epoch that a resumed run has behind it

    def _check_together(self, vocab_from: str) -> None:
        """Refuse options that cannot go together."""
        if 2 * self.jitter >= self.bptt:
            raise UsageError(f"data.bptt_jitter={self.jitter} must be less than half of data.bptt={self.bptt}")
        if self.jitter and self.mode == "windows":
            raise UsageError("data.bptt_jitter is for data.mode=streams: windows all have data.bptt characters")
        if self.random_split and self.mode == "streams":
            raise UsageError(
                "data.split=random needs data.mode=windows, as in data=text_windows: streams are contiguous by nature"
            )
        if len(self.shares) > 1 and (self.jitter or self.mode == "windows"):
            raise UsageError("data=mix needs data.mode=streams and data.bptt_jitter=0: its texts go on side by side")
        if self.random_split and vocab_from == "train":
            raise UsageError("data.split=random needs data.vocab_from=all: its training windows overlap the others")

    def _shares(self, ratio: object, extra: int) -> list[int]:
        """How many rows of a training batch each text gets."""
        if not extra:
            if ratio is not None:
                raise UsageError(f"data.ratio={ratio} is for data=mix: there is one text only")
            return [self.batch_size]
        example = f"[3{',1' * extra}]"
        if not isinstance(ratio, list) or len(ratio) != 1 + extra:
            raise UsageError(
                f"data.ratio={ratio} must have a number for each of the {1 + extra} texts, as in {example}"
            )
        parts = [check_int("data.ratio", part, 1) for part in ratio]
        if self.batch_size % sum(parts):
            raise UsageError(
                f"data.batch_size={self.batch_size} cannot be shared {':'.join(map(str, parts))}: "
                f"it must be a multiple of {sum(parts)}"
            )
        return [self.batch_size // sum(parts) * part for part in parts]

    def _encode(self, text: str) -> Tensor:
        try:
            ids = self.vocab.encode(text)
        except UsageError as error:
            raise UsageError(f"{error}: use data.unk=true, or data.vocab_from=all with data.min_freq=1") from None
        # Signed, because IGNORE is negative; small, because all of it stays in memory (of the GPU, too).
        return torch.from_numpy(ids.astype(np.int16 if len(self.vocab) < 2**15 else np.int32))

    def _cut(self, whole_N: Tensor) -> dict[str, Tensor]:
        """The three splits of a tensor, one after another; what they leave goes unused."""
        sizes = [*self.sizes.values(), len(whole_N) - sum(self.sizes.values())]
        return dict(zip(SPLITS, whole_N.split(sizes), strict=False))

    def _window_starts(self) -> dict[str, Tensor]:
        """Where the windows of each split begin in the whole text."""
        if self.random_split:
            starts = window_starts(len(self.ids_N), self.bptt, self.stride)
            order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(self.seed))
            return self._cut(starts[order])
        found, begin = {}, 0
        for name, size in self.sizes.items():
            found[name] = begin + window_starts(size, self.bptt, self.stride)
            begin += size
        return found

    def _rows(self, split: str) -> int:
        """The asked batch size, or fewer rows where a split is too small for it. 0: no such split."""
        if self.sizes[split] == 0:
            return 0
        remedy = f"give more text, or change data.{'val' if split == 'train' else split} or data.bptt={self.bptt}"
        if self.mode == "windows":
            if len(self.starts[split]) == 0:
                raise UsageError(f"the {split} split is too short for one window of data.bptt: {remedy}")
            return self.batch_size
        characters = self.sizes[split]
        if split == "train" and self.extra:
            for text, (rows, ids) in enumerate(zip(self.shares, [range(characters), *self.extra], strict=True)):
                if len(ids) <= rows:
                    raise UsageError(
                        f"data.paths[{text}] has {len(ids):,} characters for training, too few for its {rows} rows "
                        f"of each batch: give more text, or lower data.batch_size={self.batch_size}"
                    )
                if len(ids) <= rows * self.bptt:
                    self.notices.append(
                        f"data.paths[{text}] has {len(ids):,} characters for training, fewer than its {rows} rows of "
                        f"data.bptt={self.bptt}: the rest of its rows is padding"
                    )
            return self.batch_size
        if characters < 2:
            raise UsageError(f"the {split} split has 1 character, too few to predict one from another: {remedy}")
        rows = min(self.batch_size, max(1, (characters - 1) // self.bptt))
        if rows < self.batch_size:
            self.notices.append(
                f"the {split} split of {characters:,} characters is too short for data.batch_size={self.batch_size} "
                f"streams of data.bptt={self.bptt}: its batch size is {rows}"
            )
        return rows

    def _loader(self, split: str) -> Streams | Windows | Mix:
        # The whole text goes to the device once; a batch is a slice of it.
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        training, rows = split == "train", self.rows[split]
        if self.mode == "windows":
            self.ids_N, starts = self.ids_N.to(device), self.starts[split].to(device)
            return Windows(
                self.ids_N, starts, self.bptt, rows, rng=self._epoch_rng if training and self.shuffle else None
            )
        if training and self.extra:
            texts = zip([self.pieces["train"], *self.extra], self.shares, strict=True)
            return Mix(
                [Streams(*stack(ids.to(device), share), self.bptt) for ids, share in texts], self._batches_before
            )
        x, y = (stack if training else stack_all)(self.pieces[split].to(device), rows)
        return Streams(x, y, self.bptt, jitter=self.jitter if training else 0, rng=self._epoch_rng)

    def _epoch(self) -> int:
        return 0 if self.trainer is None else self.trainer.current_epoch

    def _epoch_rng(self) -> torch.Generator:
        return epoch_rng(self.seed, self._epoch())

    def _batches_before(self) -> int:
        return 0 if self.trainer is None else self.trainer.current_epoch * int(self.trainer.num_training_batches)

    def train_dataloader(self) -> Streams | Windows | Mix | RemainingBatches:
        """One epoch of training batches; of the first, what a resumed run has not seen yet."""
        loader, done, self._done = self._loader("train"), self._done, 0
        return RemainingBatches(loader, done) if done else loader

    def state_dict(self) -> dict[str, Any]:
        """How many batches of the epoch training has behind it."""
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return {"batches": progress.processed % int(self.trainer.num_training_batches)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._done = check_int("batches", state_dict["batches"], 0)

    def val_dataloader(self) -> Streams | Windows | Mix | list[Any]:
        """The validation batches, the same each time; none when the split is empty."""
        return self._loader("val") if self.rows["val"] else []

    def test_dataloader(self) -> Streams | Windows | Mix | list[Any]:
        """The test batches, the same each time; none when the split is empty."""
        return self._loader("test") if self.rows["test"] else []

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Do nothing: batches are slices of a tensor that lies on the device already."""
        return batch
