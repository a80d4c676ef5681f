"""The terminal interface of a `Session`: an editor with the suggestion in grey, the candidates, and a status line.

The model works in a thread, a piece at a time, so that it never keeps a key waiting; a key that changes what is
suggested cancels the rest.
"""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from charlm.errors import UsageError, first_line

try:
    from prompt_toolkit.application import Application
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.formatted_text import StyleAndTextTuples
    from prompt_toolkit.layout import ConditionalContainer, Dimension, HSplit, Layout, ScrollOffsets, VSplit, Window
    from prompt_toolkit.layout.controls import FormattedTextControl
    from prompt_toolkit.output.defaults import create_output
except ModuleNotFoundError:
    raise UsageError('--interactive needs the package prompt_toolkit: pip install -e ".[interactive]"') from None

from charlm.inference.interactive import keys, screen
from charlm.inference.interactive.screen import Editor, Listed
from charlm.inference.interactive.session import Request, Session
from charlm.inference.language_model import LanguageModel
from charlm.inference.sampling_options import SamplingOptions

Result = TypeVar("Result")

MOST = 15  # candidates
NOTHING = "(it ends here)"
PAUSE = 0.03  # seconds from one piece of a suggestion to the next; a key waits no longer for the model
WIDE = 72  # columns of a terminal with room for the panel
NEARBY = 10_000  # characters before the cursor that a suggestion depends on: it reads them again for each request


def run(model: LanguageModel, prompt: str, options: SamplingOptions) -> str:
    """Let a person write in the terminal, and return the text. `options` are those of the suggestions.

    The interface is on stdout, or on stderr where stdout leads elsewhere. Raises UsageError without a terminal.
    """
    screens = [stream for stream in (sys.stdout, sys.stderr) if stream is not None and stream.isatty()]
    if not screens or sys.stdin is None or not sys.stdin.isatty() or os.environ.get("TERM") == "dumb":
        raise UsageError("--interactive needs a terminal: its keyboard as stdin, and its screen as stdout or stderr")
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    session = Session(prompt, 0.0 if options.greedy else options.temperature, seed)
    interface = Interface(session, model, options)
    try:
        with warnings.catch_warnings(record=True) as later:  # now they would be written over the text
            interface.app.run(pre_run=interface.begin)
    except (EOFError, OSError):  # the terminal is gone
        pass
    except BaseException:
        print(session.text)
        raise
    finally:
        interface.thread.shutdown(wait=False, cancel_futures=True)
    for each in later:
        warnings.showwarning(each.message, each.category, each.filename, each.lineno)
    return session.text


def some(characters: Iterator[str]) -> str:
    """What comes within `PAUSE`, but at least one character unless there are none left."""
    found, begin = "", time.monotonic()
    for character in characters:
        found += character
        if time.monotonic() - begin > PAUSE:
            break
    return found


class Interface:
    """The application: keys change the session, and the session tells what to ask the model."""

    def __init__(self, session: Session, model: LanguageModel, options: SamplingOptions) -> None:
        self.session, self.model = session, model
        self.options = options.model_dump(exclude={"greedy", "temperature", "seed", "length", "unknown"})
        self.length = options.length
        self.knows = functools.cache(model.knows)
        self.editor = Editor(session, self.knows)
        self.lists: list[tuple[str, Listed]] = []  # heading, and what could come next
        self.problem = ""
        self.thread = ThreadPoolExecutor(1)
        self._wanted: dict[str, object] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        wide = Condition(lambda: self.size()[1] >= WIDE)
        text = Window(self.editor, scroll_offsets=ScrollOffsets(top=1, bottom=3))
        blank, border = Window(width=1), Window(width=1, char="│", style="class:border")
        panel = VSplit([border, self.window(lambda: screen.panel(self.lists, self.size()[0] - 2), width=screen.PANEL)])
        summary = self.window(lambda: screen.summary(self.lists, self.size()[1]), height=1)
        status = self.window(lambda: screen.status(session, self.size()[1]), height=1, style="class:status")
        message = self.window(
            lambda: screen.hints(self.message(), keys.HINTS, self.size()[1]),
            height=Dimension(min=1, max=3),
            wrap_lines=True,
            dont_extend_height=True,
        )
        above = VSplit([blank, text, ConditionalContainer(panel, wide)])
        self.app: Application[None] = Application(
            Layout(HSplit([above, ConditionalContainer(summary, ~wide), status, message]), text),
            screen.STYLE,
            key_bindings=keys.bindings(session, self.editor, self.page, self.end, self.ask),
            full_screen=True,
            output=create_output(always_prefer_tty=True),
            min_redraw_interval=PAUSE,
        )

    def size(self) -> tuple[int, int]:
        """The rows and columns of the terminal."""
        rows, columns = self.app.output.get_size()
        return rows, columns

    def page(self) -> int:
        """How many rows a page has."""
        return max(self.size()[0] - 4, 1)

    def window(self, content: Callable[[], StyleAndTextTuples], **options: Any) -> Window:
        """A part of the screen that shows what `content` gives."""
        return Window(FormattedTextControl(content), **options)

    def message(self) -> str:
        """One sentence that is more urgent than the keys, or nothing."""
        last = self.session.before[-1:]
        if self.problem:
            return f"the model failed, the text is safe: {self.problem}"
        if last and not self.session.notice and not self.knows(last):
            return f"the model never saw {last!r}: it reads the text without it"
        return self.session.notice

    def begin(self) -> None:
        """Ask for the first suggestion, and keep the text when the program is told to end."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, self.end)
        self.ask()

    def end(self) -> None:
        """Leave."""
        if not self.app.is_done:
            self.app.exit()

    def ask(self) -> None:
        """Ask the model for what the session needs now, unless that is under way."""
        text, request = self.session.before, self.session.request
        self.start("candidates", text, functools.partial(self.list_candidates, text))
        self.start("suggestion", request, functools.partial(self.write, request))

    def start(self, name: str, wanted: object, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do `work` instead of what was begun under this name, unless the same was wanted."""
        if self._wanted.get(name) != wanted:
            if name in self._tasks:
                self._tasks[name].cancel()
            self._wanted[name], self.problem = wanted, ""
            self._tasks[name] = self.app.create_background_task(self.safely(work))

    async def safely(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Show an error of the model, whatever it is, and go on."""
        try:
            await work()
        except Exception as error:
            self.problem = first_line(error)
        self.app.invalidate()

    async def list_candidates(self, text: str) -> None:
        """Find what could follow `text`."""
        found: list[tuple[str, Listed]] = [("next character", await self.call(self.model.candidates, text, MOST))]
        endings = await self.call(self.model.complete, text, MOST, "skip")
        found.append(("rest of the word", [(end.text or NOTHING, end.probability) for end in endings]))
        self.lists = found

    async def write(self, request: Request) -> None:
        """Stream the suggestion into the session."""
        options = {"temperature": request.temperature, "seed": request.seed, "unknown": "skip", **self.options}
        stream = functools.partial(self.model.stream, request.prompt[-NEARBY:], self.length, **options)
        pieces = await self.call(stream)
        while piece := await self.call(some, pieces):
            self.session.receive(request, piece)
            self.app.invalidate()
        self.session.receive(request, None)
        self.ask()

    async def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call `function` in the model's thread, where one call waits for another."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, function, *arguments)
