"""The entry point, and the one place where errors become two lines and an exit code.

Next to nothing is imported before the `try`, so that Ctrl-C during imports ends quietly, too.
"""

from __future__ import annotations

import os
import sys

BUG, INTERRUPTED, OUTPUT = 1, 130, 4


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs the command and gives its exit code. Raises only with --debug."""
    arguments, debug = take_debug(arguments)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:
        if debug:
            raise
        return _explain(error)


def take_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """The arguments without --debug, which may stand anywhere before `--`, and whether tracebacks are wanted."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    rest = [argument for argument in arguments[:end] if argument != "--debug"]
    return rest + arguments[end:], len(rest) < end or os.environ.get("KLEINBILD_DEBUG", "") not in ("", "0")


def _run(arguments: list[str]) -> int:
    from kleinbild.cli.app import invoke
    from kleinbild.cli.terminal import flush, keep_file_names

    keep_file_names()
    code = invoke(arguments)
    flush()
    return _interrupted() if code == INTERRUPTED else code


def _explain(error: Exception) -> int:
    import typer

    from kleinbild.cli.failures import in_words
    from kleinbild.cli.terminal import ReaderLeftError, show_error

    if isinstance(error, ReaderLeftError):
        return _reader_left()
    if isinstance(error, typer.Abort):  # "no" to a question, or Ctrl-D
        return _interrupted()
    known = in_words(error)
    if known is None:
        show_error(
            f"a bug in Kleinbild: {type(error).__name__}: {error}", "run it again with --debug and report what it says"
        )
        return BUG
    show_error(known.message, known.hint or "see kleinbild --help")
    return known.exit_code


def _interrupted() -> int:
    sys.stderr.write("stopped; nothing was left half-written\n")
    return INTERRUPTED


def _reader_left() -> int:
    """Nothing to say, and Python must not fail once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OUTPUT
