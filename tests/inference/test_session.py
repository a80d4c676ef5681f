"""The state of interactive writing, without a terminal, and the candidates compared with the network's own output."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm.errors import UsageError
from charlm.inference.interactive.session import HOTTEST, MOST_UNDO, Request, Session
from charlm.inference.language_model import LanguageModel
from charlm.models.recurrent import GRU
from charlm.text.vocab import Vocab

LENGTH = 6


def continuation(request: Request) -> str:
    """What the model of these tests writes."""
    rng = random.Random(repr(request))
    return "".join(rng.choice("ab 字\n") for _ in range(LENGTH))


class Server:
    """Streams what a session requests, as much at a time as it is told. `look` has to follow each action."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.request: Request | None = None
        self.look()

    def look(self) -> None:
        if self.request != self.session.request:
            self.request = self.session.request
            self.left: list[str | None] = [*continuation(self.request), None]

    def give(self, pieces: int) -> None:
        for _ in range(pieces):
            if self.left:
                self.session.receive(self.request, self.left.pop(0))
                self.look()

    def finish(self) -> None:
        while self.left:
            self.give(1)


def serve(session: Session) -> None:
    """Stream all of what has just been requested, until nothing more is to come."""
    if session.waiting:
        Server(session).finish()


def served(text: str = "", **options: float) -> Session:
    session = Session(text, **options)
    serve(session)
    return session


def test_the_suggestion_grows_with_each_piece() -> None:
    session = Session("be", seed=3)
    assert session.request == Request("be", 0.8, 3) and session.suggestion == "" and session.waiting
    session.receive(session.request, "x")
    session.receive(session.request, "y")
    assert session.suggestion == "xy" and session.waiting
    session.receive(session.request, None)
    assert session.suggestion == "xy" and not session.waiting


def test_pieces_of_an_earlier_request_are_ignored() -> None:
    session = Session("be")
    early = session.request
    session.insert("x")
    session.receive(early, "old")
    session.receive(early, None)
    assert session.suggestion == "" and session.waiting


def test_typing_what_is_suggested_keeps_the_rest_of_it() -> None:
    session = Session("be")
    session.receive(session.request, "cause")
    request = session.request
    session.insert("c")
    assert (session.text, session.suggestion, session.request) == ("bec", "ause", request)
    session.receive(request, " of")
    assert session.suggestion == "ause of"
    session.insert("x")
    assert (session.suggestion, session.request.prompt) == ("", "becx")


def test_a_deleted_character_of_the_suggestion_comes_back() -> None:
    session = Session("be")
    session.receive(session.request, "cause")
    session.accept()
    session.delete(6, 7)
    assert (session.text, session.suggestion) == ("becaus", "e")


def test_an_accepted_suggestion_is_followed_by_another() -> None:
    session = served("be")
    first = session.suggestion
    session.accept()
    assert session.text == "be" + first and session.request.prompt == session.text and session.waiting
    serve(session)
    assert session.suggestion == continuation(Request("be" + first, 0.8, 1))  # not with the same random numbers


def test_a_suggestion_that_is_accepted_while_it_is_written_goes_on() -> None:
    session = Session("be")
    session.receive(session.request, "ca")
    session.accept()
    session.receive(session.request, "use")
    assert (session.text, session.suggestion) == ("beca", "use")
    session.accept()
    session.receive(session.request, None)
    assert session.request.prompt == "because" and session.waiting


@pytest.mark.parametrize(
    ("suggestion", "word"),
    [
        ("cause of it", "cause"),
        (" of it", " of"),
        ("\n\nA new", "\n\nA"),
        (", and", ","),
        ("don't go", "don't"),
        ("don’t go", "don’t"),
        ("'go'", "'"),
        ("字母表", "字"),
        ("a字", "a"),
        ("。字", "。"),
        ("かな", "か"),
        ("  ", "  "),
        ("x1_y z", "x1_y"),
        ("㈀b", "㈀"),
        ("é\u0301t", "é"),
    ],
)
def test_a_word_of_the_suggestion(suggestion: str, word: str) -> None:
    session = Session("")
    session.receive(session.request, suggestion)
    session.accept(word=True)
    assert (session.text, session.suggestion) == (word, suggestion[len(word) :])


def test_nothing_is_suggested_before_the_end_of_the_text() -> None:
    session = served("be")
    whole = session.suggestion
    session.move(1)
    assert session.suggestion == ""
    session.accept()
    assert session.text == "be" and "at the end" in session.notice
    session.move(99)
    assert session.cursor == 2 and session.suggestion == whole


def test_accepting_before_anything_came_says_so() -> None:
    session = Session("be")
    session.accept()
    assert session.text == "be" and session.notice
    session.undo()
    assert session.notice == "nothing to undo"


def test_another_suggestion_has_the_next_seed_and_the_one_before_comes_back() -> None:
    session = served("be", seed=5)
    first = session.suggestion
    session.another()
    assert session.suggestion == "" and session.request.seed == session.seed == 6
    serve(session)
    assert session.suggestion == continuation(Request("be", 0.8, 6))
    session.another(-1)
    serve(session)
    assert session.suggestion == first


def test_seeds_stay_in_their_range() -> None:
    session = Session(seed=0)
    session.another(-1)
    assert session.seed == 2**63 - 1
    session.another()
    assert session.seed == 0


def test_temperature_changes_the_suggestion_and_stays_in_its_range() -> None:
    session = served("be", temperature=0.8)
    session.warm(0.1)
    assert session.temperature == 0.9 and session.request == Request("be", 0.9, 0) and session.suggestion == ""
    for _ in range(100):
        session.warm(-0.1)
    assert session.temperature == 0
    session.another()
    assert session.seed == 0 and "temperature 0" in session.notice
    for _ in range(100):
        session.warm(0.1)
    assert session.temperature == HOTTEST


def test_undo_takes_back_a_word_at_a_time() -> None:
    session = Session("")
    for character in "two  words here":
        session.insert(character)
    texts = []
    while session.text:
        session.undo()
        texts.append(session.text)
    assert texts == ["two  words ", "two  ", ""]
    for _ in range(3):
        session.redo()
    assert session.text == "two  words here" and session.cursor == 15
    session.redo()
    assert session.notice == "nothing to redo"


def test_nothing_can_be_redone_after_another_change() -> None:
    session = Session("")
    session.insert("a")
    session.undo()
    session.insert("b")
    session.redo()
    assert (session.text, session.notice) == ("b", "nothing to redo")


def test_what_is_typed_elsewhere_is_another_step() -> None:
    session = Session("")
    session.insert("a")
    session.insert("b")
    session.move(0)
    session.insert("c")
    session.undo()
    assert (session.text, session.cursor) == ("ab", 0)


def test_undo_brings_back_the_suggestion_that_was_accepted() -> None:
    session = served("be")
    before = session.suggestion
    session.accept()
    serve(session)
    session.undo()
    serve(session)
    assert (session.text, session.suggestion) == ("be", before)


def test_undo_after_a_word_brings_back_the_rest_of_the_same_suggestion() -> None:
    session = served("be")
    whole = session.suggestion
    session.accept(word=True)
    rest = session.suggestion
    assert rest and rest != whole
    session.insert("zzz")
    serve(session)
    session.undo()
    serve(session)
    assert session.suggestion == rest


def test_undo_brings_back_the_seed_but_not_the_temperature() -> None:
    session = served("be")
    session.accept(word=True)
    rest = session.suggestion
    session.insert("z")
    session.another()
    session.undo()
    serve(session)
    assert (session.seed, session.suggestion) == (0, rest)
    session.redo()
    assert session.request == Request(session.text, 0.8, 1)
    session.warm(0.5)
    session.undo()
    assert session.request == Request(session.text, 1.3, 0)


def test_a_model_that_does_not_repeat_itself_starts_again() -> None:
    session = Session("be")
    session.receive(session.request, "cause")
    session.accept()
    session.insert("z")
    session.undo()
    session.receive(session.request, "xx")
    assert session.request.prompt == "because" and session.suggestion == "" and session.waiting


def test_no_suggestion_is_not_asked_for_again_and_again() -> None:
    session = Session("be")
    session.receive(session.request, None)
    assert not session.waiting and session.request.prompt == "be"


def test_undo_has_an_end() -> None:
    session = Session("")
    for _ in range(MOST_UNDO + 5):
        session.insert("ab")
    for _ in range(MOST_UNDO + 5):
        session.undo()
    assert session.text == "ab" * 5


@pytest.mark.parametrize(
    ("text", "cursor", "before", "after"),
    [
        ("one two", 7, 4, 7),
        ("one two ", 8, 4, 8),
        ("one two", 5, 4, 7),
        ("one two", 0, 0, 3),
        ("字母", 2, 1, 2),
        ("", 0, 0, 0),
        ("a, b", 2, 1, 4),
    ],
)
def test_words_around_the_cursor(text: str, cursor: int, before: int, after: int) -> None:
    session = Session(text)
    session.move(cursor)
    assert (session.word_before(), session.word_after()) == (before, after)


ACTIONS = st.one_of(
    st.tuples(st.just("insert"), st.text("ab 字\n", max_size=3)),
    st.tuples(st.just("insert"), st.just("suggested")),
    st.tuples(st.just("move"), st.integers(-1, 12)),
    st.tuples(st.just("delete"), st.integers(-1, 9), st.integers(0, 12)),
    st.tuples(st.just("accept"), st.booleans()),
    st.tuples(st.just("another"), st.sampled_from([1, -1])),
    st.tuples(st.just("warm"), st.sampled_from([0.1, -0.1])),
    st.tuples(st.sampled_from(["undo", "redo"])),
    st.tuples(st.just("give"), st.integers(0, 9)),
)


@settings(max_examples=300, deadline=None)
@given(st.text("ab 字", max_size=4), st.lists(ACTIONS, max_size=25))
def test_any_actions_leave_a_text_as_typed_and_the_suggestion_of_its_request(text: str, actions: list) -> None:
    session, typed, cursor = Session(text), text, len(text)
    server = Server(session)
    for name, *values in actions:
        shown = session.suggestion
        if values == ["suggested"]:
            values = [shown[:1]]
        if name == "give":
            server.give(values[0])
        else:
            getattr(session, name)(*values)
            server.look()
        if name == "insert":
            typed, cursor = typed[:cursor] + values[0] + typed[cursor:], cursor + len(values[0])
        elif name == "move":
            cursor = min(max(values[0], 0), len(typed))
        elif name == "delete" and max(values[0], 0) < min(values[1], len(typed)):
            typed, cursor = typed[: max(values[0], 0)] + typed[values[1] :], max(values[0], 0)
        elif name == "accept" and shown:
            accepted = session.text[len(typed) :]
            assert accepted and shown.startswith(accepted) and (values[0] or accepted == shown)
            typed, cursor = typed + accepted, len(typed + accepted)
        elif name in ("undo", "redo"):
            typed, cursor = session.text, session.cursor
        assert (session.text, session.cursor) == (typed, cursor)
    server.finish()
    session.move(len(typed))
    request = session.request
    assert (request.temperature, request.seed) == (session.temperature, session.seed)
    assert session.text + session.suggestion == request.prompt + continuation(request) and session.suggestion
    for action, left, end in (("undo", "nothing to undo", text), ("redo", "nothing to redo", typed)):
        session.notice = ""
        while session.notice != left:
            getattr(session, action)()
        assert session.text == end or (action == "redo" and ("undo",) in actions)


def untrained(**vocab: bool) -> LanguageModel:
    torch.manual_seed(1)
    symbols = Vocab("\n abcdé字", **vocab)
    network = GRU(len(symbols), hidden_size=8, embedding_size=4).eval()
    for parameter in network.parameters():
        parameter.data *= 4  # far from uniform
    return LanguageModel(network, symbols, {"lowercase": True})


def expected(model: LanguageModel, ids: list[int]) -> dict[str, float]:
    """The network's own probabilities after `ids`."""
    with torch.no_grad():
        probabilities = GRU.forward(model.network, torch.tensor([ids])).logits[0, -1].double().softmax(-1)
    return {c: float(probabilities[model.vocab.offset + i]) for i, c in enumerate(model.vocab.chars)}


@pytest.mark.parametrize("special", [{}, {"unk": True}, {"pad": True, "unk": True}])
def test_candidates_are_the_most_probable_characters(special: dict[str, bool]) -> None:
    model = untrained(**special)
    found = model.candidates("AbxZ d", 4)  # x and Z are unknown, upper case is read as lower case
    all_of_them = expected(model, [model.vocab.offset + "\n abcdé字".index(c) for c in "ab d"])
    best = sorted(all_of_them, key=lambda c: -all_of_them[c])[:4]
    assert [character for character, _ in found] == best
    assert [p for _, p in found] == pytest.approx([all_of_them[c] for c in best], rel=1e-5)
    everything = model.candidates("abd", 99)
    assert sorted(c for c, _ in everything) == sorted("\n abcdé字")
    assert sum(p for _, p in everything) == pytest.approx(1) if not special else sum(p for _, p in everything) < 1


@pytest.mark.parametrize("text", ["", "x", "XYZ"])
def test_a_text_of_nothing_known_starts_from_nothing(text: str) -> None:
    model = untrained()
    assert dict(model.candidates(text, 9)) == pytest.approx(expected(model, [model.starter_id]), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("ab 字x", max_size=6), min_size=1, max_size=8), st.integers(0, 6))
def test_candidates_are_the_same_whatever_was_read_before(texts: list[str], prefix: int) -> None:
    model = untrained()
    for text in [*texts, texts[0][:prefix], texts[0][:prefix] + "b", texts[0]]:
        read = [2 + "abcdé字".index(c) if c not in " " else 1 for c in text if c != "x"]
        after = expected(model, read or [model.starter_id])
        assert dict(model.candidates(text, 9)) == pytest.approx(after, rel=1e-4)


def test_a_network_that_diverges_has_no_candidates() -> None:
    model = untrained()
    model.network.head.weight.data[0, 0] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        model.candidates("a", 3)


def test_a_model_knows_what_it_reads() -> None:
    knows = untrained().knows
    assert knows("a") and knows("É") and knows("字") and not knows("x") and not knows("\t") and not knows("\ud800")
