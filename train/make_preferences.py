"""Preference pairs for train/dpo.py: sample replies to prompts, score them by any means, keep the best and the worst.

  python train/make_preferences.py sample --model MODEL --prompts prompts.jsonl --to speech --out data/pairs
  python train/make_preferences.py pair --out data/pairs --scores scores.jsonl

The prompts are lines {"messages": [...]} that end with the user's turn, or {"text": ...} for a typed one. `sample`
writes OUT/replies.jsonl, a line for each reply with its "id", "prompt" (number of the line), "ids", "text" and, if it
is more than text, the "path" of the file in OUT/media to look at or listen to. Scoring is yours: people, a metric of
eval/, another model. Write a line {"id", "score"} for each reply, the higher the better. `pair` makes
OUT/pairs.parquet of the best and the worst reply to each prompt; prompts whose scores differ by less than --margin,
or that have fewer than two scored replies, are left out and counted.
"""

import argparse
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from recipe import ModelRecipe, load_model, load_processor
from settings import run_script

from processing_anygpt.rows import write_whole
from processing_anygpt.vocabulary import find_modality


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    add = steps.add_parser("sample", help="replies to score").add_argument
    add("--model", required=True, help="checkpoint folder, as for train/dpo.py")
    add("--prompts", required=True, type=Path, help=".jsonl")
    add("--to", default="text", help="modality of the replies (default: text)")
    add("--samples", type=int, default=4, help="replies to each prompt (default: 4)")
    add("--temperature", type=float, default=1.0)
    add("--max-new-tokens", type=int, default=700)
    add("--seed", type=int, default=0)
    add("--out", required=True, type=Path)
    add = steps.add_parser("pair", help="scored replies to pairs").add_argument
    add("--scores", required=True, type=Path, help=".jsonl of {id, score}")
    add("--margin", type=float, default=0.0, help="least difference of the scores of a pair (default: any)")
    add("--out", required=True, type=Path, help="folder of `sample`")
    args = parser.parse_args(words)
    if args.step == "pair":
        pair(args.out, args.scores, args.margin)
        return
    if args.samples < 2 or not args.temperature > 0:
        raise ValueError(f"Got {args.samples} samples at temperature {args.temperature}, need 2 or more, above 0.")
    if args.out.exists() and any(args.out.iterdir()):
        raise ValueError(f"{args.out} is not empty. Give the name of a new folder.")
    sample(args)


def sample(args: argparse.Namespace) -> None:
    processor = load_processor(args.model)
    if args.to != "text":
        find_modality(processor.specs, args.to)
    prompts = [messages_of(line, args.prompts) for line in read_lines(args.prompts)]
    model = load_model(ModelRecipe(model=args.model), args.seed).eval()
    (args.out / "media").mkdir(parents=True, exist_ok=True)
    replies = []
    for number, messages in enumerate(prompts):
        torch.manual_seed(args.seed + number)  # whatever the other prompts are
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        prompt = processor.apply_chat_template([messages] * args.samples, **options)
        wanted = {"output_modalities": (args.to,), "required_modalities": () if args.to == "text" else (args.to,)}
        with torch.inference_mode():
            output = model.generate(
                **prompt, **wanted, do_sample=True, temperature=args.temperature, max_new_tokens=args.max_new_tokens
            )
        start = prompt["input_ids"].shape[1]
        for which, ids in enumerate(output[:, start:].tolist()):
            name = f"{number}-{which}"
            reply = {"id": name, "prompt": number, "prompt_ids": prompt["input_ids"][0].tolist()}
            replies.append(
                reply | whole(ids, model.config.eos_token_id) | save(processor.parse_output(ids), args, name)
            )
    write_jsonl(args.out / "replies.jsonl", replies)


def whole(ids: list[int], end: int) -> dict:
    """The ids up to the end of the reply. One that was cut off is no answer to learn from."""
    return {"ids": ids[: ids.index(end) + 1] if end in ids else None}


def save(parts: list, args: argparse.Namespace, name: str) -> dict:
    """The text of a reply, and the file of its medium."""
    found = {"text": " ".join(part.text for part in parts if part.modality == "text")}
    for part in parts:
        if part.modality == args.to != "text" and getattr(part, "problem", None) is None:
            path = args.out / "media" / f"{name}.{'png' if hasattr(part, 'image') else 'wav'}"
            part.save(path)
            return found | {"path": str(path.relative_to(args.out))}
    return found


def pair(out: Path, scores: Path, margin: float) -> None:
    replies = {reply["id"]: reply for reply in read_lines(out / "replies.jsonl")}
    rated: dict[int, list[tuple[float, str]]] = {reply["prompt"]: [] for reply in replies.values()}
    for line in read_lines(scores):
        if line.get("id") not in replies or not isinstance(line.get("score"), int | float):
            raise ValueError(f"{scores}: got {json.dumps(line)}, need an id of {out}/replies.jsonl and a score.")
        if replies[line["id"]]["ids"]:
            rated[replies[line["id"]]["prompt"]].append((line["score"], line["id"]))
    pairs = []
    for found in rated.values():
        if len(found) > 1 and (best := max(found))[0] - (worst := min(found))[0] > 0 and best[0] - worst[0] >= margin:
            chosen, rejected = replies[best[1]], replies[worst[1]]
            pairs.append({"prompt_ids": chosen["prompt_ids"], "chosen_ids": chosen["ids"]})
            pairs[-1]["rejected_ids"] = rejected["ids"]
    if not pairs:
        raise ValueError(f"No pair: no prompt of {out} has two whole replies whose scores differ by {margin:g}.")
    table = pa.Table.from_pylist(pairs)
    write_whole(out / "pairs.parquet", lambda temporary: pq.write_table(table, temporary))
    print(f"{out / 'pairs.parquet'}: {len(pairs)} pairs, {len(rated) - len(pairs)} prompts left out")


def messages_of(line: dict, path: Path) -> list[dict]:
    if isinstance(line.get("text"), str):
        return [{"role": "user", "content": line["text"]}]
    if not isinstance(line.get("messages"), list):
        raise ValueError(f"{path}: got a line with {', '.join(line) or 'nothing'}, need messages, or text.")
    return line["messages"]


def read_lines(path: Path) -> list[dict]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path} is no JSON lines: {error}.") from error
    if not lines or not all(isinstance(line, dict) for line in lines):
        raise ValueError(f"{path}: need a JSON object in each line, and one line or more.")
    return lines


def write_jsonl(path: Path, rows: list[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    print(f"{path}: {len(rows)} replies")


if __name__ == "__main__":
    run_script(main)
