"""Lines of JSON, one object each."""

import json
from collections.abc import Iterable
from pathlib import Path

from processing_anygpt.files import write_text


def read_lines(path: Path) -> list[tuple[str, dict]]:
    """(where it is, object) of every line of a .jsonl file; ValueError if there is none, or anything else."""
    found = []
    for number, text in enumerate(path.read_bytes().split(b"\n"), 1):  # strings may hold other ends of a line
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number} is no JSON: {error}.") from error
        if not isinstance(line, dict):
            raise ValueError(f"{path}:{number}: got JSON of type {type(line).__name__}, need an object.")
        found.append((f"{path}:{number}", line))
    if not found:
        raise ValueError(f"{path} has no lines. Give one or more.")
    return found


def write_lines(path: Path, records: Iterable[dict]) -> None:
    """Writes the file whole or not at all, and says so."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_text(path, "".join(lines))
    print(f"{path}: {len(lines)}", flush=True)
