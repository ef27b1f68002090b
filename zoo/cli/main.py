"""The command `zoo`: finds the word, imports its module, and turns exceptions into sentences and exit statuses.

0 all well; 1 some items failed, the rest is finished; 2 the user's mistake, nothing started; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

from zoo.errors import UserError, ZooError, full, suggest

COMMANDS: dict[str, tuple[str, str]] = {
    "list": ("zoo.cli.list", "what there is: recipes, encoders, weights, datasets, ..."),
    "show": ("zoo.cli.show", "one of them, whole"),
    "check": ("zoo.cli.check", "recipes and cards: every mistake at once, nothing started"),
    "train": ("zoo.cli.train", "a recipe -> a run folder; or resume a run"),
    "predict": ("zoo.cli.predict", "weights and images -> files that other tools open"),
    "generate": ("zoo.cli.generate", "weights and masks, embeddings or noise -> pictures"),
    "bench": ("zoo.cli.bench", "weights x datasets -> a table with intervals, and pictures"),
    "data": ("zoo.cli.data", "fetch or check a copy, a card for your own folder, samples"),
    "weights": ("zoo.cli.weights", "pull, verify, mirror, push: pretrained weights"),
    "embed": ("zoo.cli.embed", "images -> a table of an encoder's features, a row a tile"),
    "stain": ("zoo.cli.stain", "normalise, separate and measure stains of images and slides"),
    "verify": ("zoo.cli.verify", "published cases: does this build compute what they do"),
    "demo": ("zoo.cli.demo", "train, benchmark and predict on data that comes along"),
    "schema": ("zoo.cli.schema", "JSON schemas of recipes and cards, for editors"),
    "completion": ("zoo.cli.completion", "completion for bash, zsh or fish"),
}


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are `UserError`s that name the nearest valid words."""

    def __init__(self, program: str, description: str | None = None) -> None:
        super().__init__(prog=program, description=description, formatter_class=Help, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise `UserError` with the message and where help is."""
        raise UserError(f"{self.prog}: {message}. See: {self.prog} --help")

    def options(self) -> list[str]:
        """Return every option string."""
        return [string for action in self._actions for string in action.option_strings]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = action.metavar if isinstance(action.metavar, str) else "/".join(action.option_strings) or action.dest
            choices = [str(choice) for choice in action.choices]
            known = "" if len(choices) <= 6 else f" Expected one of {', '.join(choices)}."
            what = f'{self.prog}: {name}: "{value}" will not do.{known} {suggest(str(value), choices)}'
            raise UserError(f"{what.rstrip()} See: {self.prog} --help")

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Return the arguments. Positional words and options may come in any order. Raises `UserError`."""
        found, extra = self.parse_known_intermixed_args(list(words))
        if extra:
            close = suggest(extra[0].partition("=")[0], self.options()) if extra[0].startswith("-") else ""
            unknown = "no option" if extra[0].startswith("-") else "one word too many:"
            raise UserError(
                f'{self.prog}: {unknown} "{extra[0]}". {close} See: {self.prog} --help'.replace(".  ", ". ")
            )
        return found


class Help(argparse.RawDescriptionHelpFormatter):
    """Help that fits 80 columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=78)


def choose(program: str, commands: Mapping[str, tuple[str, str]], word: str) -> Any:
    """Return the module of a command word, imported. Raises `UserError` with the nearest words."""
    if word not in commands:
        raise UserError(f'{program}: no command "{word}". {suggest(word, commands, f"{program} --help")}')
    return import_module(commands[word][0])


def overview() -> str:
    """Return the text of `zoo --help`."""
    width = max(map(len, COMMANDS))
    lines = ["usage: zoo COMMAND ...", "", "Models that look at tissue and draw.", ""]
    lines += [f"  zoo {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    lines += [
        "",
        "zoo COMMAND --help says more. Start with: zoo list recipes",
        "",
        "options: --help, --version, --debug (show where an error arose)",
        "environment: ZOO_DATA (published data), ZOO_CACHE, ZOO_OFFLINE=1, ZOO_CONFIG",
    ]
    return "\n".join(lines)


def run(words: Sequence[str]) -> int:
    """Run one command line and return its exit status; exceptions pass."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if words else 2
    if words[0] == "--version":
        from zoo import __version__

        print(f"histozoo {__version__}")
        return 0
    if words[0].startswith("-"):
        raise UserError(f'zoo: no option "{words[0]}". Expected a command first. See: zoo --help')
    module = choose("zoo", COMMANDS, words[0])
    from zoo.cli.text import wrapped

    parser = Parser(f"zoo {words[0]}", wrapped(module.__doc__ or ""))
    module.add_arguments(parser)
    status: int = module.run(parser.parse(words[1:]))
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: the entry point of `zoo`."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:end]
    words = [word for i, word in enumerate(words) if word != "--debug" or i > end]
    try:
        with _terminable():
            return _flushed(run(words))
    except SystemExit as stop:  # argparse after --help
        return _flushed(int(stop.code or 0))
    except BrokenPipeError:  # the reader of our output has gone: `zoo list encoders | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        return 130
    except ZooError as error:
        if debug:
            raise
        print(error, file=sys.stderr)
        return error.status
    except Exception as error:
        if debug:
            raise
        if why := full(error):
            print(f"zoo {words[0]}: nothing more can be written ({why}). Make room and run again.", file=sys.stderr)
            return 1
        first = (str(error).strip() or "no message").splitlines()[0]
        print(f"zoo: unexpected {type(error).__name__}: {first}", file=sys.stderr)
        print(
            "This is a fault of histozoo or of its installation. Run again with --debug to see where.", file=sys.stderr
        )
        return 1


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that what it was about to write is tidied away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _flushed(status: int) -> int:
    sys.stdout.flush()
    return status
