"""The command line: `cocot train | eval | ask | probe | compare | reproduce | report | data | bench | ...`.

An error of ours is one line and exit code 2. Ctrl-C exits with 130, SIGTERM with 143 and a closed terminal with 129,
training after it saved its state.
Read next: `commands.py`, which has a function for each command.
"""

from __future__ import annotations

import argparse
import errno
import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from cocot.cli.arguments import build_parser
from cocot.cli.commands import COMMANDS
from cocot.errors import CocotError, ConfigError, Interrupted
from cocot.system.console import messages, say

__all__ = ["COMMANDS", "main"]

_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    with messages():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    try:
        args, overrides = build_parser().parse_known_args(argv)
        args.overrides = overrides
        if args.overrides and not args.takes_overrides:
            raise ConfigError(_unrecognized(args))
        if "model" in args:
            from cocot.assets import locate

            args.model = locate(args.model)
        return COMMANDS[args.command](args)
    except CocotError as error:
        command = shlex.join(["cocot", *(sys.argv[1:] if argv is None else argv)])
        say(f"{error} To resume: {command}" if isinstance(error, Interrupted) else str(error))
        return error.exit_code
    except OSError as error:
        hint = ". Where you may not write, choose another place." if error.errno in _READ_ONLY else ""
        say(f"{error}{hint}")
        return CocotError.exit_code
    except KeyboardInterrupt:  # where a program calls this function; a process of ours takes signals itself
        say("interrupted.")
        return 130


def _unrecognized(args: argparse.Namespace) -> str:
    """What to say of arguments that a command does not have."""
    options = [f"--{name.replace('_', '-')}" for name in vars(args)]
    near = get_close_matches(args.overrides[0].partition("=")[0], options, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unrecognized arguments: {shlex.join(args.overrides)}{hint} (see `cocot {args.command} --help`)"
