"""Entry point of `greenllm` and `python -m greenllm`.

Contract: errors become one line and exit code 2; SIGTERM and SIGHUP end a command as Ctrl-C does.
"""

from __future__ import annotations

import sys

from greenllm.core import GreenllmError
from greenllm.interrupts import end_like_interrupts


def main() -> None:
    """Run the command line."""
    from greenllm.cli.app import app

    end_like_interrupts()
    try:
        app()
    except GreenllmError as error:
        print(f"greenllm: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
