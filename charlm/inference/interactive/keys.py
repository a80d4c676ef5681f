"""What the keys of `charlm.inference.interactive.app` do: keys that terminals, macOS and tmux leave to programs."""

from __future__ import annotations

import functools
from collections.abc import Callable

from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys

from charlm.inference.interactive.screen import Editor
from charlm.inference.interactive.session import Session

# The most important ones first: a narrow terminal has no room for the others.
HINTS = [("Tab", "accept"), ("^C", "end"), ("Alt-→", "word"), ("^N", "another"), ("Alt-↑↓", "temperature")]
HINTS += [("^Z", "undo"), ("^P", "previous"), ("^Y", "redo")]


def bindings(
    session: Session, editor: Editor, page: Callable[[], int], end: Callable[[], None], changed: Callable[[], None]
) -> KeyBindings:
    """Keys for a session. `page` gives the rows of a page, `end` leaves, and `changed` is called after each key."""
    found = KeyBindings()

    def bind(action: Callable[[], None], *names: str) -> None:
        for name in names:
            found.add(*name.split())(functools.partial(pressed, action))

    def right(word: bool) -> None:
        if session.suggestion:
            session.accept(word)
        else:
            session.move(session.word_after() if word else session.cursor + 1)

    def pressed(action: Callable[[], None], event: KeyPressEvent) -> None:
        session.notice = ""
        action()
        changed()

    bind(end, "c-c", "c-d", "<sigint>")
    bind(session.accept, "tab")
    bind(lambda: right(False), "right", "c-f")
    bind(lambda: right(True), "escape right", "c-right", "escape f")
    bind(session.another, "c-n")
    bind(lambda: session.another(-1), "c-p")
    bind(lambda: session.warm(0.1), "escape up", "c-up")
    bind(lambda: session.warm(-0.1), "escape down", "c-down")
    bind(session.undo, "c-z", "c-_")
    bind(session.redo, "c-y")
    bind(lambda: session.insert("\n"), "enter", "c-j")
    bind(lambda: session.delete(session.cursor - 1, session.cursor), "backspace")
    bind(lambda: session.delete(session.cursor, session.cursor + 1), "delete")
    bind(lambda: session.delete(session.word_before(), session.cursor), "c-w", "escape backspace")
    bind(lambda: session.delete(editor.edge(False), session.cursor), "c-u")
    bind(lambda: session.delete(session.cursor, editor.edge(True)), "c-k")
    bind(lambda: session.move(session.cursor - 1), "left", "c-b")
    bind(lambda: session.move(session.word_before()), "escape left", "c-left", "escape b")
    bind(lambda: session.move(editor.edge(False)), "home", "c-a")
    bind(lambda: session.move(editor.edge(True)), "end", "c-e")
    bind(lambda: session.move(0), "c-home", "escape <")
    bind(lambda: session.move(len(session.text)), "c-end", "escape >")
    bind(lambda: session.move(editor.above(1)), "up")
    bind(lambda: session.move(editor.above(-1)), "down")
    bind(lambda: session.move(editor.above(page())), "pageup")
    bind(lambda: session.move(editor.above(-page())), "pagedown")

    @found.add(Keys.Any)
    def _(event: KeyPressEvent) -> None:
        if event.data.isprintable():  # not another control key
            pressed(lambda: session.insert(event.data), event)

    @found.add(Keys.BracketedPaste)
    def _(event: KeyPressEvent) -> None:
        pressed(lambda: session.insert(event.data.replace("\r\n", "\n").replace("\r", "\n")), event)

    return found
