"""Files that appear whole or not at all. Apart from rows.py, as a machine that trains codecs may lack pyarrow."""

import os
from pathlib import Path

import numpy as np


def write_whole(path: Path, write) -> None:
    """Calls `write(temporary path)`, then renames: a reader never meets half a file, also after `kill -9`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:  # a full disk may show only now
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A file of UTF-8 text, whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """A compressed npz file, whole or not at all."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # to a name numpy would add a suffix
            np.savez_compressed(file, **arrays)

    write_whole(path, write)
