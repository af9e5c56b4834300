"""How a script of this folder ends: what went wrong in one line, without a traceback."""

import sys
from collections.abc import Callable
from pathlib import Path


def run_script(main: Callable[[list[str]], int | None]) -> None:
    """Ends with what `main` makes of the command line; errors that a person can mend are one line, and exit code 2."""
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError, ImportError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
