"""Held-out results of anygpt-tiny, by judges this project did not train where one exists: what `make eval` runs.

  python eval/tiny.py --speech data/speech --sound-font TimGM6mb.sf2 --out out/eval

`run.py --task all --protocols tiny` on the checkpoint, its first replies, its codecs alone and the originals, then
`report.py` for the table and OUT.html. `--speech` holds the recordings of `train/make_speech_data.py --only heldout
digits`.
"""

import argparse
from pathlib import Path

import report
import run
from console import run_script

TINY = Path(__file__).parents[1] / "modeling_anygpt" / "pretrained" / "anygpt_tiny"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY))
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--sound-font", help="is linked into the folder of recordings")
    parser.add_argument("--out", type=Path, required=True, help="folder of result files")
    args = parser.parse_args(argv)
    font = args.speech / "TimGM6mb.sf2"
    if args.sound_font and not font.exists():
        if not args.speech.is_dir() or not Path(args.sound_font).is_file():
            raise ValueError(
                f"Got --speech {args.speech} and --sound-font {args.sound_font}; need a folder and a file."
            )
        font.unlink(missing_ok=True)  # a link to a font that is gone
        font.symlink_to(Path(args.sound_font).resolve())
    words = ["--task", "all", "--protocols", "tiny", "--data", str(args.speech), "--out", str(args.out), "--cpu"]
    systems = [f"anygpt-tiny={args.model}", f"first=first:{args.model}", f"codec=codec:{args.model}", "original"]
    run.main([*words, "--model", *systems])
    report.main([str(args.out)])
    report.main([str(args.out), "--page", str(args.out.with_suffix(".html")), "--data", str(args.speech)])


if __name__ == "__main__":
    run_script(main)
