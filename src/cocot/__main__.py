"""The process of the command line, `cocot` or `python -m cocot`: its signals and its streams, around `cli.main`.

The signals come first, before anything is imported that takes time.
"""

import sys

from cocot.system.interrupts import exit_on_signals, ignore_signals


def main() -> None:
    """Run the command that `sys.argv` holds, and end the process with its exit code."""
    exit_on_signals()
    from cocot.system import console

    console.take_streams()
    from cocot import cli

    try:
        code = cli.main()
    except SystemExit as end:  # help, or a usage error
        code = end.code if isinstance(end.code, int) else 0
    if error := console.lost_output():
        console.say(f"could not write to standard output: {error.strerror}. What the command wrote to files is whole.")
        code = 2
    ignore_signals()
    sys.exit(code)


if __name__ == "__main__":
    main()
