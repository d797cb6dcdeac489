"""The command line: the group of commands, and how what goes wrong is shown.

Every command lies beside its function in ``pipeline/commands``. Heavy imports happen inside the functions, so that
``--help`` answers at once.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from data_cache.errors import UserError, nearest
from data_cache.ranks import wait_for_all
from pipeline.commands import COMMANDS
from pipeline.interruption import KEPT, interruptible, was_interrupted
from pipeline.job import end_job, ending_together, join_job, share_or_stand_back
from pipeline.options import EncodableHelp, GivenPath
from pipeline.problems import explain_problem
from pipeline.silence import showing_notices, silence_libraries
from pipeline.threads import check_threads, choose_thread_defaults

if TYPE_CHECKING:
    from pipeline.console import Console


class Commands(click.Group):
    """A group that names the nearest command for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve a command, or fail with the nearest name."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            known = self.list_commands(ctx)
            ctx.fail(f"no such command {args[0]!r}{nearest(args[0], known)}; known: {', '.join(known)}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=Commands,
    commands=COMMANDS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--workdir", type=GivenPath(), metavar="DIR", help="Where artifacts live; else $PIPELINE_WORKDIR, else ./artifacts."
)
@click.option("--json", "json_mode", is_flag=True, help="Print exactly one JSON object on stdout.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@click.version_option(package_name="pseudo-depth-pipeline")
@click.pass_context
def cli(ctx: click.Context, workdir: Path | None, json_mode: bool, quiet: bool) -> None:
    """Train segmentation networks with pseudo depth by phase schedules, compare, and ship without the depth decoder."""
    if ctx.invoked_subcommand is None:
        if json_mode:
            ctx.fail(f"no command after --json; known: {', '.join(cli.list_commands(ctx))}")
        click.echo(ctx.get_help())
        return
    from pipeline.session import Session

    if not share_or_stand_back(ctx.invoked_subcommand):
        ctx.exit()
    ctx.obj = Session.start(workdir, json_mode=json_mode, quiet=quiet)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 2 the user can repair it, 1 a bug, 130 interrupted."""
    choose_thread_defaults()
    silence_libraries()
    click.Context.formatter_class = EncodableHelp
    words = list(sys.argv[1:] if arguments is None else arguments)
    with interruptible(json_mode="--json" in words, last=arguments is None):
        with ending_together():
            status = _run(words)
        _release_stdout()
        end_job(status)
    sys.exit(status)


def _call(arguments: list[str]) -> int:
    try:
        status = cli.main(args=arguments, prog_name="pipeline", standalone_mode=False)
    except click.Abort:  # made of the KeyboardInterrupt, which may say what was kept
        raise
    except SystemExit as ended:
        status = ended.code
    except Exception:
        if was_interrupted():  # a library has turned KeyboardInterrupt into an error of its own
            raise KeyboardInterrupt from None
        raise
    return status if isinstance(status, int) else 0


def _release_stdout() -> None:
    """Point stdout nowhere when it cannot be written to, or Python would complain while closing it."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> int:
    @functools.cache
    def find_console() -> Console:
        from pipeline.console import Console

        return Console(json_mode="--json" in arguments, quiet="--quiet" in arguments)

    try:
        with showing_notices(lambda text: find_console().info(text)):
            check_threads()
            join_job(arguments)
            status = _call(arguments)
            sys.stdout.flush()
            wait_for_all()  # each has done its part
            return status
    except UserError as problem:
        find_console().error(str(problem))
        return 2
    except click.NoSuchOption as problem:
        group_option = any(problem.option_name in option.opts for option in cli.params)
        hint = f"; it belongs before the command: pipeline {problem.option_name} …" if group_option else ""
        find_console().error(f"no such option: {problem.option_name}{hint}" if hint else problem.format_message())
        return problem.exit_code
    except click.ClickException as problem:
        find_console().error(problem.format_message())
        return problem.exit_code
    except (KeyboardInterrupt, click.Abort) as interruption:
        reason = str(interruption.__cause__ or interruption)  # click wraps the one that was raised
        find_console().error(reason or KEPT, label="interrupted")
        return 130
    except BrokenPipeError:  # the reader of stdout went away, for example `| head`
        return 0
    except (OSError, RuntimeError, MemoryError) as problem:
        message = explain_problem(problem)
        if message is None:
            raise
        find_console().error(message)
        return 2


if __name__ == "__main__":
    main()
