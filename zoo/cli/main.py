"""Entry point of `zoo`: gathers the commands and turns errors into one line and an exit code.

Nothing heavy is imported here; a command imports what it needs when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from zoo._version import __version__
from zoo.cli import bench, browse, complete, datasets, export, publish, runs, train, use, weights
from zoo.errors import ZooError

app = typer.Typer(
    name="zoo",
    help="Train, evaluate and use models of medical imaging, remote sensing and re-identification.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zoo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; works in any place.")
    ] = False,
) -> None:
    """Shared options; `--debug` is taken out of the words before they get here."""


for module in (browse, datasets, train, use, runs, weights, export, publish, bench, complete):
    module.register(app)


def _red(line: str) -> None:
    from zoo.privacy import scrubbed

    line = scrubbed(line)
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print(f"\x1b[31merror: {line}\x1b[0m" if colour else f"error: {line}", file=sys.stderr)


def main(words: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    2 for configuration, data and weights, 1 for a failure, 130 for Ctrl-C.
    """
    debug = "--debug" in words
    try:
        code = app(
            args=[w for w in words if w != "--debug"], prog_name="zoo", standalone_mode=False
        )
    except ZooError as error:
        if debug:
            raise
        for line in str(error).splitlines():
            _red(line)
        return error.exit_code
    except KeyboardInterrupt:  # Typer itself turns most of them into this number
        code = 130
    except BrokenPipeError:  # `zoo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        # Typer ships its own copy of click, so its usage errors are known by what they can do.
        describe = getattr(error, "format_message", None)
        if debug or describe is None:
            if not debug:
                _red(f"{type(error).__name__}: {' '.join(str(error).split())}; --debug shows more")
                return 1
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # `zoo data`: its text is the help
            print(describe(), file=sys.stderr)
            return 2
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "zoo"
        message = " ".join(describe().split())
        if message:
            _red(f"{path}: {message} See '{path} --help'.")
        return int(getattr(error, "exit_code", 2))
    if code == 130:
        _red("interrupted")
    return code if isinstance(code, int) else 0


def run() -> None:
    """The `zoo` program; a traceback that `--debug` asks for is shown without credentials."""
    try:
        code = main(sys.argv[1:])
    except Exception as error:
        import traceback

        from zoo.privacy import scrubbed

        print(scrubbed(traceback.format_exc()), end="", file=sys.stderr)
        code = int(getattr(error, "exit_code", 1))
    sys.exit(code)
