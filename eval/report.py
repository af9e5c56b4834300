"""Results as a web page, as a model card's table and model-index, and as the table of broken models.

  python eval/report.py out/eval --page out/eval.html --data data/speech
  python eval/report.py out/eval --card model_card.md
  python eval/report.py out/eval --floors docs/evaluation.md
  python eval/report.py results/base results/tuned --page compare.html      # N models side by side; no --page: prints

Takes folders that `run.py --out` wrote. The page needs nothing else: pictures, players and spectrograms are inside.
With --data it also shows what the models were shown. Models are compared with the first (or --against) by paired
bootstrap.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout too

import page  # noqa: E402
import protocol  # noqa: E402
import tables  # noqa: E402
from console import run_script  # noqa: E402


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--against", metavar="NAME", help="the system that the others are compared with")
    parser.add_argument("--page", type=Path, metavar="HTML")
    parser.add_argument("--data", type=Path, help="as of run.py")
    parser.add_argument("--card", type=Path, metavar="MD", help="has a block `results`")
    parser.add_argument("--protocols", type=Path, metavar="MD", help="has a block `protocols`: the paper's, in words")
    parser.add_argument("--floors", type=Path, metavar="MD", help="has a block `floors`")
    args = parser.parse_args(argv)
    if args.protocols:
        tables.write_block(args.protocols, "protocols", tables.protocol_table(protocol.choose("all", "paper")))
        return
    if not args.results:
        raise ValueError("Got no folders of results. Give what eval/run.py --out made, one folder or several.")
    systems = tables.load(args.results)
    model = args.against or next(iter(systems))
    if model not in systems:
        raise ValueError(f"No results of {model!r}. There are: {', '.join(systems)}.")
    if args.card:
        tables.write_block(args.card, "results", tables.card_table(systems, model))
        tables.write_model_index(args.card, systems, model)
    if args.floors:
        tables.write_block(args.floors, "floors", tables.floor_table(systems, model))
    if args.page:
        page.write(args.page, systems, model, args.data)
    if not (args.card or args.floors or args.page):
        several = len(tables.of_kind(systems, "model")) > 1
        print((tables.comparison_table if several else tables.card_table)(systems, model), end="")


if __name__ == "__main__":
    run_script(main)
