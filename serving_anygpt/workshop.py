"""A model folder made part by part: it appears whole at the end, and an interrupted run goes on where it stopped."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import __version__, media
from .progress import step

RECORD = "conversion.json"  # in OUT.partial: what its parts were made from


@dataclass
class Part:
    """Something to make: a file or folder `name`, from `sources`, by `write(path)`."""

    name: str
    sources: list[Path]
    write: Callable[[Path], None]
    size: int  # bytes it will take, about
    settings: str = ""  # what else decides how it comes out


class Workshop:
    """The folder `OUT.partial`. Parts appear in it whole, and its record tells what they were made from.

    As a context: wrong input (ValueError) removes the folder again, unless an earlier run left it; any other end, such
    as Ctrl-C or a full disk, leaves it to be resumed.
    """

    def __init__(self, out: Path):
        self.out, self.folder = out, out.with_name(f"{out.name}.partial")
        if out.exists():
            raise ValueError(f"{out} exists already. Give the name of a new folder, or remove it.")
        media.writable_folder(out.parent)
        self.record = {"anygpt": __version__, "parts": {}}
        self.is_new = not self.folder.exists()
        if not self.is_new and any(self.folder.iterdir()):
            try:
                found = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
                if found["anygpt"] == __version__:  # another version may write other parts
                    self.record["parts"] = dict(found["parts"])
            except (OSError, ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{self.folder} exists and is not an unfinished conversion of this command. Remove it, or give "
                    "another name for the new folder."
                ) from None

    def check_space(self, needed: int) -> None:
        """Raises a ValueError when the disk can't hold what is still to be made, `needed` bytes in all."""
        there = [] if self.is_new else [path.stat().st_size for path in self.folder.rglob("*") if path.is_file()]
        missing, free = needed - sum(there), shutil.disk_usage(self.out.parent).free
        if missing > free:
            raise ValueError(
                f"The conversion needs {missing / 1e9:.1f} GB more, the disk has {free / 1e9:.1f} GB free."
            )

    def __enter__(self) -> "Workshop":
        self.folder.mkdir(exist_ok=True)
        self._write_record()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, ValueError) and self.is_new:
            shutil.rmtree(self.folder)

    def make(self, part: Part, quiet: bool) -> None:
        """Makes a part under a temporary name and renames it, unless it is there already, of the same sources."""
        target, prints = self.folder / part.name, [part.settings]
        prints += [list(fingerprint(path)) for path in part.sources]
        if target.exists() and self.record["parts"].get(part.name) == prints:
            return
        remove(target)
        temporary = self.folder / f".{part.name}"
        remove(temporary)
        with step(part.name, quiet):
            part.write(temporary)
        os.replace(temporary, target)
        self.record["parts"][part.name] = prints
        self._write_record()

    def finish(self) -> None:
        (self.folder / RECORD).unlink()
        os.replace(self.folder, self.out)

    def _write_record(self) -> None:
        media.write_atomic(
            self.folder / RECORD, lambda path: path.write_text(json.dumps(self.record, indent=2), encoding="utf-8")
        )


def fingerprint(path: Path) -> tuple[str, int, int]:
    """Name, size in bytes and time of the last change: what tells, as for `make`, whether a file is the same."""
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
