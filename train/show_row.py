"""Look at rows of tokens: python train/show_row.py rows/mine --row 3

Colours tell modalities; what is learned (has a label) is bold on a dark ground, the rest is dim. Long runs of codes
are shortened unless --all. Rows are counted from 0; --task and --source pick among them.
"""

import argparse
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from settings import run_script

import modeling_anygpt
from processing_anygpt import rows
from processing_anygpt.conversation import CONTROL_TOKENS, IGNORED
from processing_anygpt.preparation import load_checkpoint
from processing_anygpt.vocabulary import code_ids

TINY = Path(modeling_anygpt.__file__).parent / "pretrained" / "anygpt_tiny"
PALETTE = ("green", "cyan", "magenta", "yellow", "blue")  # modalities in the order of the table
SHOWN = 3  # codes at either end of a shortened run


def colour_of(tokenizer: Any, modalities: Sequence[Any]) -> dict[int, str]:
    """Id -> colour: that of its modality, red for control tokens; ids of text have none."""
    colours = dict.fromkeys(tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS)), "red")
    for spec, colour in zip(modalities, PALETTE * len(modalities), strict=False):
        colours |= dict.fromkeys([spec.start_token_id, spec.end_token_id, *code_ids(spec)], colour)
    return colours


def render(row: dict, tokenizer: Any, modalities: Sequence[Any], everything: bool = False) -> Text:
    """A row as coloured text: its head line, then its tokens."""
    learned = sum(label != IGNORED for label in row["labels"])
    counts = ", ".join(f"{count} {name}" for name, count in row["modality_tokens"].items() if count)
    head = f"{row['source']}  {row['task']}: {row['length']} tokens ({counts}), {learned} learned\n"
    text = Text().append(head, "underline")
    colours = colour_of(tokenizer, modalities)
    marked = [(i, colours.get(i, "white"), label) for i, label in zip(row["input_ids"], row["labels"], strict=True)]
    for (colour, is_learned), run in groupby(marked, key=lambda item: (item[1], item[2] != IGNORED)):
        ids = [item[0] for item in run]
        # Text is decoded in one piece: a token may hold half a character.
        tokens = [tokenizer.decode(ids)] if colour == "white" else tokenizer.convert_ids_to_tokens(ids)
        keep = SHOWN + 1  # and the start or end token
        if len(tokens) > 2 * keep and not everything:
            tokens = [*tokens[:keep], f" … {len(tokens) - 2 * keep} … ", *tokens[-keep:]]
        text.append("".join(tokens), f"bold {colour} on grey15" if is_learned else f"dim {colour}")
    return text


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="folder made by train/prepare_data.py")
    parser.add_argument("--row", type=int, default=0, help="which one (default: the first)")
    parser.add_argument("--task", help="among the rows of a task, for example 'speech->text'")
    parser.add_argument("--source", help="among the rows of a source row")
    parser.add_argument("--model", default=str(TINY), help="the checkpoint of the rows (default: anygpt-tiny)")
    parser.add_argument("--all", action="store_true", help="every code")
    args = parser.parse_args(words)
    processor = load_checkpoint(args.model)[1]
    rows.check_vocabulary(rows.read_manifest(args.rows), processor.tokenizer)
    table = rows.read_table(args.rows)
    wanted = {"task": args.task, "source": args.source}
    found = [
        index
        for index, row in enumerate(table.select(["task", "source"]).to_pylist())
        if all(value is None or row[key] == value for key, value in wanted.items())
    ]
    if not 0 <= args.row < len(found):
        raise ValueError(f"No row {args.row}: {len(found)} of {len(table)} rows match.")
    (row,) = table.slice(found[args.row], 1).to_pylist()
    Console(highlight=False).print(render(row, processor.tokenizer, processor.specs, args.all))


if __name__ == "__main__":
    run_script(main)
