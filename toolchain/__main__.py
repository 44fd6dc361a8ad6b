"""`python -m toolchain` and the console script: the `toolchain` command, interruptible from its first moment."""

import os
import signal
import sys
from typing import Any


def main() -> Any:
    """Run the command line. Ctrl-C while it is being imported is answered as later, there is nothing to tidy yet."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from toolchain.cli import main as command_line

    try:
        return command_line()
    except SystemExit as ended:
        if ended.code != 130:
            raise
        # All is tidied and said. The interpreter's own end would take a second Ctrl-C badly, and make of the
        # first one, where it came while an extension module was imported, a death by signal.
        sys.stdout.flush()
        os._exit(130)


def _leave(*_: object) -> None:
    os.write(2, b"toolchain: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
