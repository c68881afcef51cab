"""The list of commands. Each lives in a module of its own and imports what is heavy when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

import kleinbild
from kleinbild.cli import examples
from kleinbild.cli.adapters import adapters
from kleinbild.cli.budgets import budgets
from kleinbild.cli.catalog import catalog
from kleinbild.cli.config import config
from kleinbild.cli.distill import distill
from kleinbild.cli.doctor import doctor
from kleinbild.cli.info import info
from kleinbild.cli.keys import keys
from kleinbild.cli.ledger import ledger
from kleinbild.cli.models import models, pull
from kleinbild.cli.nano import nano
from kleinbild.cli.pictures import edit, generate
from kleinbild.cli.plan import plan
from kleinbild.cli.route import route
from kleinbild.cli.serve import serve
from kleinbild.cli.terminal import result
from kleinbild.cli.train import train
from kleinbild.cli.usage import usage
from kleinbild.cli.verbs import with_verb

EXIT_CODES = {
    0: "done",
    1: "a bug in Kleinbild",
    2: "the request is wrong: an option, the prompt, a size, a picture",
    3: "the model: unknown, weights missing or damaged, a goal missed",
    4: "the result cannot be written, or the server's database not be used",
    5: "the network, the hub or a server cannot be reached",
    6: "the engine could not: out of memory, cancelled, too late, or it ended",
    130: "stopped by you: Ctrl-C, or no to a question",
}
ROOT_OPTIONS = ("--help", "-h", "--version", "--install-completion", "--show-completion")

app = typer.Typer(
    name="kleinbild",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExit codes:\n" + "\n".join(f"  {code:<5}{meaning}" for code, meaning in EXIT_CODES.items()),
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: it is narrow, quick, and the same in a pipe
)


def show_version(wanted: bool) -> None:
    if wanted:
        result(f"kleinbild {kleinbild.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show tracebacks of errors, as does KLEINBILD_DEBUG=1."),
    ] = False,
) -> None:
    """FLUX.2 [klein] on your own machine: pictures from words and from pictures.

    \b
    A line without a command is a prompt: kleinbild "a fox on a mint background"
    Results (paths, or JSON with --json) go to stdout, all else to stderr.
    """


app.command(epilog=examples.block(examples.GENERATE))(generate)
app.command(epilog=examples.block(examples.EDIT))(edit)
app.command()(info)
app.add_typer(models, name="models")
app.command()(pull)
app.add_typer(adapters, name="adapters")
app.command()(serve)
app.add_typer(keys, name="keys")
app.command()(budgets)
app.command()(usage)
app.add_typer(ledger, name="ledger")
app.add_typer(route, name="route")
app.add_typer(config, name="config")
app.add_typer(catalog, name="catalog")
app.command()(distill)
app.command()(doctor)
app.command()(plan)
app.add_typer(nano, name="nano")
app.add_typer(train, name="train")


def invoke(arguments: list[str]) -> int:
    """Runs the command line and gives its exit code. Raises whatever goes wrong."""
    command = typer.main.get_command(app)
    verbs = list(getattr(command, "commands", {}))
    code = command.main(with_verb(arguments, verbs, ROOT_OPTIONS), prog_name="kleinbild", standalone_mode=False)
    return code if isinstance(code, int) else 0
