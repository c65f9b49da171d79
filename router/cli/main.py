"""The command `ttt-router`: its commands, and how errors become one sentence and an exit code.

Imports typer and the standard library; torch, SQL and LangGraph are imported inside the commands that
need them, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from router.cli import models, policy
from router.cli.chat import chat
from router.cli.collect import collect, families
from router.cli.episodes import explain, feedback, history
from router.cli.evaluate import evaluate
from router.cli.options import DataDir, Device, Dtype, Model, settings_of
from router.cli.progress import Reporter
from router.cli.serve import serve
from router.cli.solve import solve
from router.cli.store import app as store_app
from router.cli.tune import tune
from router.errors import check_packages, exit_code

EPILOG = """
\b
Start here:
  ttt-router demo
  ttt-router solve --demos pairs.csv --queries new.csv
  ttt-router COMMAND --help      options and examples of a command

Settings are taken from options, then from TTT_ROUTER_* environment variables (TTT_ROUTER_MODEL, …), then
from config.toml in the user's configuration folder. `ttt-router doctor` says where everything is.

\b
Exit codes:
  0    done
  1    an unforeseen error, with its traceback: please report it
  2    wrong usage, or an impossible setting
  3    the task, one of its files or a metric can't be used as given
  4    the base model can't be had, loaded or held in memory
  5    the database, the data folder or a kept adapter; `store verify` found a problem
  6    training failed where no fall-back was asked for (--arm ttt)
  7    no such episode or policy version
  8    an impossible preference, signal or policy
  9    a file of yours hides one of the packages of ttt-router
  130  stopped by Ctrl-C
"""

MAX_MESSAGE = 2000
"""Characters of an error."""
app = typer.Typer(
    name="ttt-router",
    help="Answer few-shot tasks with a local language model: in-context learning first, training when it pays.",
    epilog=EPILOG,
    add_completion=False,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("solve")(solve)
app.command("chat")(chat)
app.command("serve")(serve)
app.command("evaluate")(evaluate)
app.command("collect")(collect)
app.command("families")(families)
app.command("explain")(explain)
app.command("history")(history)
app.command("feedback")(feedback)
app.command("tune")(tune)
app.add_typer(policy.app, name="policy")
app.add_typer(models.app, name="model")
app.add_typer(store_app, name="store")


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    if version:
        from router.doctor import installed_version

        print(f"ttt-router {installed_version('ttt-router')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


@app.command("demo")
def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the picture and the figures.")
    ] = Path("ttt-router-demo"),
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Watch the router on small tasks of its own.

    A table and a picture of accuracy against seconds come at the end.

    \b
    Example:
      ttt-router demo --out /tmp/demo
    """
    from router.demo import show_demo

    show_demo(settings_of(model=model, device=device, dtype=dtype), out)


@app.command("doctor")
def doctor(model: Model = None, device: Device = None, dtype: Dtype = None, data_dir: DataDir = None) -> int:
    """Say what this machine has and lacks.

    Also whether the model fits in memory, and about how long answers and training take.

    Exit code 4 when the model, device or memory stands in the way, 5 when a folder or the database does.

    \b
    Examples:
      ttt-router doctor
      ttt-router doctor --model organisation/model
    """
    from ttt.process import prepare

    prepare()
    from router.cli.render import columns
    from router.doctor import diagnose

    with Reporter() as reporter:
        reporter.say("Measuring this machine")
        checks = diagnose(settings_of(model=model, device=device, dtype=dtype, data_dir=data_dir))
    print("\n".join(columns((("ok" if c.ok else "PROBLEM"), c.name, c.text) for c in checks)))
    return next((c.exit_code for c in checks if not c.ok), 0)


@app.command("graph")
def graph() -> None:
    """Print the state machine as Mermaid.

    \b
    Example:
      ttt-router graph > graph.mmd
    """
    from ttt.process import prepare

    prepare()
    from router.graph import build_graph

    print(build_graph().get_graph().draw_mermaid())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; only an unforeseen error is raised."""
    if not sys.warnoptions:  # deprecations inside libraries are not the user's business
        warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        check_packages()
        code = app(args=argv, prog_name="ttt-router", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "ttt-router"
        return _fail(f"{error.format_message()} (see {command} --help)", error.exit_code)
    except Abort:
        return _fail("Stopped.", 130)
    except BrokenPipeError:
        # The reader of stdout has left; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        known = exit_code(error)
        if known is None:
            raise
        return _fail(str(error), known)


def _fail(message: str, code: int) -> int:
    told = " ".join(message.split())
    if len(told) > MAX_MESSAGE:  # it quotes what was given
        told = f"{told[: MAX_MESSAGE // 2]} … {told[-MAX_MESSAGE // 2 :]}"
    print(f"error: {told}", file=sys.stderr)
    return code
