"""The command line: `vala edit | invert | train | shards | info | quickstart | sweep | figures |
study`.

A command first tries what can fail: names, clip, outputs, model. Then it says what the long work
will take, and starts it. Exit status: 2 for bad input, 1 for a failed run.
"""

from __future__ import annotations

import warnings

import typer
from typer.core import TyperGroup

from vala_research import InputError
from vala_research.cli.edit import edit, quickstart
from vala_research.cli.figures import figures
from vala_research.cli.info import info
from vala_research.cli.invert import invert
from vala_research.cli.report import stop
from vala_research.cli.shards import shards
from vala_research.cli.study import study
from vala_research.cli.sweep import sweep
from vala_research.cli.train import train


class Commands(TyperGroup):
    """Turn an error into one sentence on stderr and an exit status."""

    def invoke(self, ctx):
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except (InputError, FloatingPointError) as error:
                stop(error, 2)
            except (MemoryError, OSError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and "memory" not in str(error):
                    raise
                if isinstance(error, OSError):
                    stop(error, 1)
                stop("Out of memory: give fewer --frames, a smaller --size or a half --dtype.", 1)
            except Exception as error:  # an option that is missing or of the wrong kind
                if not hasattr(error, "format_message"):
                    raise
                stop(error.format_message(), 2)


def _show_warning(message, category, *_args, **_kwargs) -> None:
    if issubclass(category, UserWarning):
        typer.echo(f"warning: {message}", err=True)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Text-driven video editing with image diffusion models.",
)
for command in (edit, quickstart, invert, shards, train, info, sweep, figures):
    app.command()(command)
app.add_typer(study, name="study")


def main() -> None:
    """Run the console script `vala`."""
    app(prog_name="vala")
