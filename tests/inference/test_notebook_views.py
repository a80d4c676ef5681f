"""The lesson's names, scores per character, and what a notebook shows: escaped, whatever a checkpoint says."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from charlm.checkpoint.format import read_progress
from charlm.errors import UsageError
from charlm.inference.language_model import LanguageModel
from charlm.models.recurrent import GRU
from charlm.models.windowed import Windowed
from charlm.text.vocab import Vocab

CHARS = "\t\n !&<>abcdefghijklmnopqrstuvwxyz"
HOSTILE = "<script>alert(1)</script>\x1b[2J\n" + "x" * 500


def language_model(window: int | None = None, **arguments: Any) -> LanguageModel:
    torch.manual_seed(1)
    network = GRU(len(CHARS), 8, 16)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return LanguageModel(
        Windowed(network, window) if window else network, Vocab(CHARS), {"lowercase": True}, **arguments
    )


@torch.inference_mode()
def probabilities(model: LanguageModel, text: str) -> torch.Tensor:
    """The probability of every symbol after `text`, which is read in one go."""
    ids = torch.tensor([[CHARS.index(c) for c in text]])
    return model.network(ids).logits[0, -1].double().softmax(-1)


@pytest.mark.parametrize("window", [None, 3])
def test_the_lessons_three_functions(window: int | None) -> None:
    """Against the lesson's definitions, written out: argmax, append, repeat."""
    model, text = language_model(window), "for thos"

    def most_likely(inp: str) -> str:
        return CHARS[int(probabilities(model, inp).argmax())]

    expected = text
    for _ in range(12):
        expected += most_likely(expected)
    assert model.get_next(text) == most_likely(text)
    assert model.get_next_n(text, 12) == expected
    assert model.get_nexts(text) == [most_likely(text[: i + 1]) for i in range(len(text))]
    assert model.get_next_n(text, 0) == text and model.get_nexts("") == []


def test_get_next_n_samples_where_it_is_asked_to() -> None:
    model = language_model()
    drawn = model.get_next_n("abc", 20, temperature=1, seed=3)
    assert drawn == "abc" + model.generate("abc", 20, temperature=1, seed=3) != model.get_next_n("abc", 20)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("chunk", [1, 5, 4096])
def test_each_character_has_the_loss_of_its_own_probability(window: int | None, chunk: int) -> None:
    model, text = language_model(window), "The <quick>\tfox\n& I"
    lower, scores = text.lower(), model.score_each(text, chunk)
    assert "".join(score.character for score in scores) == lower[1:]
    for i, score in enumerate(scores, start=1):
        p = probabilities(model, lower[:i])[CHARS.index(lower[i])].item()
        assert score.nats == pytest.approx(-math.log(p), rel=1e-5) and score.bits == score.nats / math.log(2)
    assert math.fsum(score.nats for score in scores) == pytest.approx(model.score(text, chunk) * len(scores), rel=1e-12)
    with pytest.raises(UsageError, match="two characters"):
        model.score_each("a")


class Page(HTMLParser):
    """The tags of a page, its text, and the opacity of each coloured character."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.text, self.opacities = set[str](), "", list[float]()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "span":
            style = dict(attributes)["style"] or ""
            self.opacities.append(float(style.rpartition(",")[2].strip(" )")))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_text_is_the_redder_the_more_it_surprises() -> None:
    model, text = language_model(), "<b>a & b</b>\n\tend".replace("/", "!")
    page = Page(model.show(text)._repr_html_())
    assert page.tags == {"pre", "span"}  # nothing of the text has become a tag
    assert page.text == text.replace("\n", "⏎\n").replace("\t", "⇥")
    expected = [min(score.nats / math.log(len(CHARS)), 1) for score in model.score_each(text)]
    assert page.opacities == pytest.approx(expected, abs=0.006) and 0 < min(page.opacities) < max(page.opacities)


def test_a_model_says_what_it_is() -> None:
    model = language_model(3, corpus={"name": "notes"}, progress={"epoch": 7, "val_nats": math.log(4)})
    count = 3 * 16 * (8 + 16 + 2) + len(CHARS) * (8 + 16 + 1)  # gates, embedding, head
    for shown in (repr(model), Page(model._repr_html_()).text):
        assert f"GRU after a window of 3 characters, {count:,} parameters" in shown
        assert "notes" in shown and f"{len(CHARS)} symbols, lower case" in shown
        assert "validation loss" in shown and "1.3863 nats/char, 2.000 bpc, epoch 7" in shown
    assert "loss" not in repr(language_model())


def test_what_a_checkpoint_says_is_escaped_and_short() -> None:
    model = language_model(corpus={"name": HOSTILE})
    page = Page(model._repr_html_())
    assert page.tags == {"div", "strong", "table", "tr", "th", "td"}
    assert "<script>" in page.text and len(page.text) < 300
    assert "\x1b" not in repr(model) and "\n" not in repr(model)


@pytest.mark.parametrize(
    "values",
    [None, 3, [1], {"epoch": "9"}, {"epoch": True}, {"epoch": 10**5000}, {"val_nats": math.nan}, {"val_nats": -1.0},
     {"val_nats": math.inf}, {"val_nats": torch.tensor(1.0)}, {"train_nats": "<b>"}, {1: 2}],
)  # fmt: skip
def test_progress_that_makes_no_sense_is_left_out(values: object) -> None:
    assert read_progress(values) == {}
    repr(language_model(progress=read_progress(values)))


def test_a_uniform_guess_has_the_full_colour() -> None:
    model = language_model()
    for parameter in model.network.parameters():
        torch.nn.init.zeros_(parameter)
    assert set(Page(model.show("abc")._repr_html_()).opacities) == {1.0}
    uniform = F.cross_entropy(torch.zeros(1, len(CHARS)), torch.tensor([0])).item()
    assert f"2 characters, {uniform:.4f} nats" in repr(model.show("abc"))
