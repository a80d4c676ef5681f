"""The text that a model was trained on, cut again as it was in training."""

from __future__ import annotations

from charlm.data.options import DataOptions
from charlm.data.splits import split_sizes
from charlm.errors import UsageError, as_usage_error
from charlm.inference.language_model import LanguageModel
from charlm.run.instantiate import build_corpus
from charlm.run.trust import check_targets
from charlm.text.vocab import normalise


class HeldOut:
    """The splits of the text of `model`, which is read when it is needed. `where` names the model in messages."""

    def __init__(self, model: LanguageModel, where: str) -> None:
        self.model, self.where = model, where
        self._splits: dict[str, str] = {}

    def __call__(self, split: str) -> str:
        """The text of a split, normalised as the model reads it.

        Raises UsageError where the text is not at hand or has changed, and for a split that does not exist.
        """
        if not self._splits:
            self._splits = self._read()
        text = self._splits[split]
        if not text:
            there = " or ".join(f"--split {name}" for name, part in self._splits.items() if part)
            raise UsageError(
                f"{self.where} has no {split} split (data.{split}=0): choose {there}, or give a text with --text FILE"
            )
        return text

    def _read(self) -> dict[str, str]:
        model = self.model
        section = model.config.get("data")
        if not isinstance(section, dict):
            raise UsageError(f"{self.where} does not say which text it was trained on: give a text with --text FILE")
        check_targets(section)
        with as_usage_error(f"{self.where} is damaged: data"):
            options = DataOptions(**section)
        if options.split == "random":
            raise UsageError(
                f"{self.where} was trained on random windows of its text (data.split=random), so that no part of it is "
                f"held out: give a text with --text FILE"
            )
        try:
            corpus = build_corpus(options)
        except UsageError as error:
            raise UsageError(f"{error} (it is the text of {self.where}; --text FILE evaluates another)") from None
        if corpus.sha256 != model.corpus.get("sha256"):
            raise UsageError(
                f"{corpus.source} is not the text that {self.where} was trained on: its SHA-256 is {corpus.sha256}, "
                f"not {model.corpus.get('sha256')}; restore the old text, or give a text with --text FILE"
            )
        text, *extra = (normalise(part.text, **model.normalisation) for part in (corpus, *corpus.extra))
        sizes = split_sizes(len(text), options)
        train, val = sizes["train"], sizes["train"] + sizes["val"]
        return {
            "train": "".join([text[:train], *extra]),
            "val": text[train:val],
            "test": text[val : val + sizes["test"]],
        }
