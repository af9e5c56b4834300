"""How a script of this folder begins and ends: items read, or what went wrong in one line, without a traceback."""

import json
import sys
from collections.abc import Callable
from pathlib import Path


def read_rows(path: Path, needed: tuple[str, ...], maker: str) -> list[dict]:
    """The rows of a .jsonl file, each an object with the keys `needed`.

    Raises:
        ValueError: no such file (`maker` is the command that makes it), no rows, or one that is something else.
    """
    if not path.is_file():
        raise ValueError(f"No file {path}. Make it with {maker}.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):  # texts may hold U+2028 and such
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}:{number} is no JSON: {error}. Make it again with {maker}.") from None
            if not isinstance(rows[-1], dict) or not set(needed) <= set(rows[-1]):
                raise ValueError(f"{path}:{number} needs {', '.join(needed)}. Make it again with {maker}.")
    if not rows:
        raise ValueError(f"{path} is empty. Make it again with {maker}.")
    return rows


def check_count(option: str, number: int | None) -> None:
    if number is not None and number < 1:
        raise ValueError(f"Got {option} {number}; allowed are whole numbers from 1. Leave it out for the default.")


def run_script(main: Callable[[list[str]], int | None]) -> None:
    """Ends with what `main` makes of the command line; errors that a person can mend are one line, and exit code 2."""
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError, ImportError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
