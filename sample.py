"""Write text with a trained model: python sample.py --prompt 'for those'."""

import argparse
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from charlm.cli import Parser, add_options, exit_cleanly, options_of, quick_imports
from charlm.errors import OptionError, UsageError
from charlm.inference import sample_output as output
from charlm.inference.decoding import Decoding, is_greedy
from charlm.inference.prompts import read_prompt, read_prompts, read_schema
from charlm.inference.sampling_options import GAP, OutputOptions, SamplingOptions, TextOptions

if TYPE_CHECKING:  # PyTorch is slow to import
    from charlm.inference.language_model import LanguageModel

DECODING = set(Decoding.model_fields)
PROMPTS = {"prompt", "prompt_file", "prompts"}
ENDS = {"length", "stop", "stop_at", "charset", "regex", "json_schema"}
COMMON = {"checkpoint", "unknown"}
MEANT_FOR = {  # by what is asked for, the options that mean something there
    "positions": COMMON,
    "complete": COMMON | {"num_samples", "format"},
    "infill": COMMON | {"num_samples", "format", "beams", "length"},
    "interactive": COMMON | DECODING | {"prompt", "prompt_file", "length", "seed"},
    "beams": COMMON | PROMPTS | ENDS | {"num_samples", "format", "logprobs"},
    "samples": COMMON | DECODING | PROMPTS | ENDS | {"num_samples", "best_of", "format", "logprobs", "seed"},
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(description="Write text with a trained model. The text goes to stdout, everything else to stderr.")
    files = "A checkpoint or run folder (default: the newest run); of several, the mean of their predictions."
    p.add_argument("--checkpoint", metavar="FILE", nargs="+", action="extend", help=files)
    group = p.add_argument_group("prompts")
    group.add_argument("--prompt", metavar="TEXT", help="The text to continue.")
    group.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="A file with the text to continue, without its last line break; - for stdin.",
    )
    group.add_argument(
        "--prompts", metavar="FILE", help="A file with a prompt on each line that is not empty; - for stdin."
    )
    group = p.add_argument_group("output")
    add_options(group, OutputOptions, unset=True)
    group = p.add_argument_group("instead of texts")
    words = "The most probable endings of the last word of TEXT, with their probabilities."
    group.add_argument("--complete", metavar="TEXT", help=words)
    gap = f"What may stand in the gap {GAP} of TEXT: up to --length characters (default: 20), with --beams (64)."
    group.add_argument("--infill", metavar="TEXT", help=gap)
    group.add_argument("--positions", metavar="TEXT", help="The most likely next character after each one of TEXT.")
    editor = "Write together with the model in this terminal."
    group.add_argument("--interactive", action="store_true", default=None, help=editor)
    group = p.add_argument_group("the text")
    add_options(group, TextOptions, leave_out=["json_schema"], unset=True)
    group.add_argument(
        "--json-schema", metavar="FILE", help="The continuation is JSON of the schema in this file; - for stdin."
    )
    group = p.add_argument_group("decoding: how each character is drawn")
    add_options(group, SamplingOptions, leave_out=list(TextOptions.model_fields), unset=True)
    return p


def what(args: argparse.Namespace) -> str:
    """What is asked for. Raises UsageError for options that have no meaning together."""
    given = [name for name, value in vars(args).items() if value is not None]
    asked = next((name for name in MEANT_FOR if name in given), "samples")
    for name in given:
        if name != asked and name not in MEANT_FOR[asked]:
            alone = "drawing texts" if asked == "samples" else flag(asked)
            raise UsageError(f"{flag(name)} means nothing with {alone}: leave one of them out")
    sources = [name for name in given if name in PROMPTS]
    if len(sources) > 1:
        raise UsageError(f"{flag(sources[0])} and {flag(sources[1])} both give the prompt: leave one of them out")
    waiting = [name for name in ("prompt_file", "prompts", "json_schema") if getattr(args, name) == "-"]
    if len(waiting) > 1:
        raise UsageError(f"{flag(waiting[0])} and {flag(waiting[1])} both read stdin: give one of them a file")
    for name in ("positions", "complete", "infill"):
        if getattr(args, name) == "":
            raise UsageError(f"{flag(name)} needs a text to read, such as {flag(name)} ' part of'")
    return asked


def flag(name: str) -> str:
    """The argument of this name."""
    return f"--{name.replace('_', '-')}"


def main() -> None:
    """Write what is asked for to stdout."""
    args = parser().parse_args()
    asked = what(args)
    if args.json_schema is not None:
        args.json_schema = read_schema(args.json_schema)
    options, form = options_of(args, SamplingOptions), options_of(args, OutputOptions)
    check(asked, options, form)
    if options.seed is None:
        options = options.model_copy(update={"seed": secrets.randbelow(2**32)})
    prompts = find_prompts(args)
    with quick_imports():  # after --help: PyTorch takes a second to import
        from charlm.checkpoint.paths import find_checkpoint
        from charlm.inference import combining, language_model

    paths = [find_checkpoint(where) for where in args.checkpoint or [None]]
    model = language_model.load(paths[0]) if len(paths) == 1 else combining.load_ensemble(paths)
    path = " + ".join(map(str, paths))
    drawn = asked == "samples" and not is_greedy(options)
    print(f"{path} · seed {options.seed}" if drawn else path, file=sys.stderr)
    with own_options(asked):
        output.write(pieces(asked, model, options, form, prompts, args))


def pieces(
    asked: str,
    model: "LanguageModel",
    options: SamplingOptions,
    form: OutputOptions,
    prompts: list[str],
    args: argparse.Namespace,
) -> Iterator[str]:
    """The pieces of what is asked for."""
    ends = options.model_dump(include=set(TextOptions.model_fields))
    number, many = form.num_samples or 1, form.num_samples or 10
    if asked == "positions":
        predictions = model.predictions(args.positions, options.unknown)
        if not predictions:
            raise UsageError("--positions: the model never saw any character of this text; give another")
        yield output.positions(predictions)
    elif asked == "complete":
        yield from output.endings(model.complete(args.complete, many, options.unknown), form)
    elif asked == "infill":
        limits = {"max_length": args.length, "width": form.beams}
        given = {name: value for name, value in limits.items() if value is not None}
        yield from output.fillings(model.infill(args.infill, many, unknown=options.unknown, **given), form)
    elif asked == "interactive":
        from charlm.inference.interactive.app import run

        yield run(model, prompts[0], options)
    elif asked == "beams":
        assert form.beams is not None
        with output.bar(len(prompts) * options.length) as progress:
            yield from output.samples(model.beams(prompts, number, width=form.beams, progress=progress, **ends), form)
    elif form.num_samples is None and form.best_of is None and len(prompts) == 1 and form.format == "text":
        stream = model.stream(prompts[0], **options.model_dump())
        yield prompts[0]
        with output.bar(options.length, shown=not sys.stdout.isatty()) as progress:
            for piece in stream:
                yield piece
                progress(len(piece))
    else:
        more = {"best_of": form.best_of, "logprobs": form.format == "jsonl", **options.model_dump()}
        with output.bar(len(prompts) * (form.best_of or number) * options.length) as progress:
            yield from output.samples(model.samples(prompts, number, progress=progress, **more), form)


def check(asked: str, options: SamplingOptions, form: OutputOptions) -> None:
    """Raise UsageError for numbers that do not go together."""
    number = form.num_samples or 1
    if asked == "samples" and is_greedy(options) and max(number, form.best_of or 1) > 1:
        raise UsageError("a greedy text is the same each time: leave out --num-samples and --best-of, or draw texts")
    for name in ("beams", "best_of"):
        size = getattr(form, name)
        if asked != "infill" and size is not None and size < number:
            raise UsageError(f"{flag(name)} {size} is less than --num-samples {number}: it must be at least as many")
    if form.logprobs and form.format != "jsonl":
        raise UsageError("--logprobs needs --format jsonl")


def find_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts on the command line or in a file."""
    if args.prompts is not None:
        return read_prompts(args.prompts)
    return [args.prompt or "" if args.prompt_file is None else read_prompt(args.prompt_file)]


@contextmanager
def own_options(asked: str) -> Iterator[None]:
    """Name the options of the command line in a message for Python."""
    try:
        yield
    except OptionError as error:
        name = {"text": asked, "width": "beams", "max_length": "length"}.get(error.name, error.name)
        raise OptionError(flag(name), error.problem, error.value) from None
    except UsageError as error:
        raise UsageError(str(error).replace('unknown="skip"', "--unknown skip")) from None


if __name__ == "__main__":
    with exit_cleanly():
        main()
