"""Some of a lesson's examples as a user would have them: recordings, pictures and tunes with a text beside each.

  python train/lesson_files.py data/lesson --out data/my

DATA is the folder of train/make_lesson.py; what the model is to say, draw and play is taken, of each part the first so
many. `make own-files` takes them through the walk-through of docs/training.md and examines what came of it.
"""

import argparse
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from jsonl import read_lines
from merge import refuse_existing, whole_folder
from settings import run_script

from processing_anygpt.instructions import opening_of, openings
from processing_anygpt.tiny_world.language import INSTRUCTIONS

COUNTS = {"voice": 300, "object": 600, "instrument": 150}


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--share", type=float, default=1.0, help=f"of {COUNTS}")
    args = parser.parse_args(words)
    refuse_existing(args.out)
    if not 0 < args.share < float("inf"):
        raise ValueError(f"--share: got {args.share}, allowed: above 0.")
    with whole_folder(args.out) as folder:
        for part, count in COUNTS.items():
            found = list(islice(examples(args.data / f"{part}.jsonl"), max(1, round(args.share * count))))
            for number, (text, medium) in enumerate(found):
                stem = f"{part}_{number:04d}"
                kind = ".music" if medium["type"] == "music" else ""
                shutil.copy(args.data / medium["path"], folder / f"{stem}{kind}{Path(medium['path']).suffix}")
                (folder / f"{stem}.txt").write_text(f"{text}\n", encoding="utf-8")
            print(f"{part}: {len(found)} examples", flush=True)


def examples(manifest: Path) -> Iterator[tuple[str, dict]]:
    """What is asked for, and the block of the medium that answers, of each conversation that ends in one."""
    if not manifest.is_file():
        raise ValueError(f"No file {manifest}. Make it with train/make_lesson.py --out {manifest.parent}.")
    for _, line in read_lines(manifest):
        asked, (medium, *_) = (message["content"] for message in line["messages"])
        if medium["type"] != "text":
            request = asked[-1]["text"]
            yield request[len(opening_of(request, openings(INSTRUCTIONS["text", medium["type"]]))) :].strip(), medium


if __name__ == "__main__":
    run_script(main)
