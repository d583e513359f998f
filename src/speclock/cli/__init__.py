"""The command line: parse, call one function, print. Exit 0 done, 1 the check failed, 2 bad input."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import warnings

import click

from speclock.environment import keep_freed_memory
from speclock.errors import InputError

# One line of help each, so that `speclock --help` imports no command and no torch.
COMMANDS = {
    "demo": "The whole job on a real model and data: lock, attack, report.",
    "ls": "List locks, attacks, suites, tasks, models, experiments or optimizers.",
    "train": "Make a base that does a task.",
    "inspect": "Spectra of every weight matrix.",
    "curvature": "The Hessian's spectrum, and what bounds it.",
    "lock": "Lock a model against training.",
    "tune": "Find the lock of least uplift for a price in utility.",
    "attack": "Attack one model with one attack.",
    "audit": "Say what a lock is worth.",
    "report": "Write the report of an audit again.",
    "reproduce": "The paper's figures and tables.",
    "key": "Write the key that unlocks a locked model.",
    "unlock": "Make the base of a locked model and its key.",
    "sign": "Lay a signed manifest beside a locked model.",
    "verify": "Say whether a copy is as released, and carries its lock.",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"speclock.cli.{name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            from speclock.registry import unknown

            raise InputError(unknown("command", args[0], COMMANDS))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="speclock")
def cli() -> None:
    """Lock open-weight models against training, attack the lock, and say what it is worth.

    A lock is friction with a price, not a guarantee. Begin with: speclock demo
    """


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status; bad input prints one line and returns 2."""
    keep_freed_memory()
    arguments = sys.argv[1:] if arguments is None else arguments
    command = f"speclock {arguments[0]}" if arguments and arguments[0] in COMMANDS else "speclock"
    try:
        status = cli.main(arguments, prog_name="speclock", standalone_mode=False)
    except InputError as error:
        click.echo(f"{command}: {error}", err=True)
        return 2
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        click.echo(
            f"{command}: {' '.join(error.format_message().split()).rstrip('.')}. See {command} --help.",
            err=True,
        )
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo(
            f"{command}: interrupted. Where the command has --resume, that goes on from here.", err=True
        )
        return 130
    except BrokenPipeError:
        # The reader of a pipe went away (`speclock inspect … | head`); that is no failure of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status if isinstance(status, int) else 0


def entry_point() -> None:
    """The `speclock` program."""
    # A scheduler's TERM is an interruption like Ctrl-C: what is finished is kept, and how to go on is said.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Where in speclock's own code a warning was raised says nothing to who typed a command.
    warnings.showwarning = lambda message, *_: click.echo(f"speclock: warning: {message}", err=True)
    sys.exit(main())
