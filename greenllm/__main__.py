"""Entry point of `greenllm` and `python -m greenllm`: errors become one line and exit code 2."""

from __future__ import annotations

import sys

from greenllm.core import GreenllmError


def main() -> None:
    """Run the command line."""
    from greenllm.cli.app import app

    try:
        app()
    except GreenllmError as error:
        print(f"greenllm: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
