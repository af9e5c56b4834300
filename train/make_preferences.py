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
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jsonl import read_lines, write_lines
from merge import whole_folder
from recipe import ModelRecipe, load_model, load_processor
from settings import run_script

from processing_anygpt.files import write_whole
from processing_anygpt.preparation import copy_messages
from processing_anygpt.vocabulary import find_modality

# What `pair` needs of a line of replies.jsonl.
REPLY = {"id": str, "prompt": int, "prompt_ids": list, "ids": list | None}


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
    if args.samples < 2:
        raise ValueError(f"--samples: got {args.samples}, need 2 or more to compare.")
    if not 0.01 <= args.temperature <= 100:  # beyond, the scores overflow
        raise ValueError(f"--temperature: got {args.temperature}, allowed are 0.01 to 100.")
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens: got {args.max_new_tokens}, allowed are 1 and more.")
    if args.out.exists() and any(args.out.iterdir()):
        raise ValueError(f"{args.out} is not empty. Give the name of a new folder.")
    sample(args)


def sample(args: argparse.Namespace) -> None:
    processor = load_processor(args.model)
    if args.to != "text":
        find_modality(processor.specs, args.to)
    prompts = [read_prompt(line, place, args.samples, processor) for place, line in read_lines(args.prompts)]
    model = load_model(ModelRecipe(model=args.model), args.seed).eval()
    with whole_folder(args.out) as folder:
        replies = sample_all(model, processor, prompts, args, folder)
        write_lines(folder / "replies.jsonl", replies)
    alike = sum(len({str(r["ids"]) for r in replies if r["prompt"] == n}) == 1 for n in range(len(prompts)))
    if alike:
        print(f"all replies to {alike} of {len(prompts)} prompts are the same; a higher --temperature makes others")


def sample_all(model, processor, prompts: list, args: argparse.Namespace, folder: Path) -> list[dict]:
    """The replies to all prompts, with their media in `folder`."""
    (folder / "media").mkdir()
    # By the checkpoint's own settings text may always be the likeliest.
    options = {"do_sample": True, "modality_presets": {args.to: {"temperature": args.temperature, "top_k": 0}}}
    options |= {"output_modalities": (args.to,), "max_new_tokens": args.max_new_tokens}
    options |= {"required_modalities": () if args.to == "text" else (args.to,)}
    replies = []
    for number, prompt in enumerate(prompts):
        torch.manual_seed(args.seed + number)  # whatever the other prompts are
        with torch.inference_mode():
            output = model.generate(**prompt, **options)
        start = prompt["input_ids"].shape[1]
        for which, ids in enumerate(output[:, start:].tolist()):
            name = f"{number}-{which}"
            reply = {"id": name, "prompt": number, "prompt_ids": prompt["input_ids"][0].tolist()}
            parts = processor.parse_output(ids)
            replies.append(reply | whole(ids, model.config.eos_token_id) | save(parts, args.to, folder, name))
    return replies


def whole(ids: list[int], end: int) -> dict:
    """The ids up to the end of the reply. One that was cut off is no answer to learn from."""
    return {"ids": ids[: ids.index(end) + 1] if end in ids else None}


def save(parts: list, modality: str, folder: Path, name: str) -> dict:
    """The text of a reply, and the file of its medium in `folder`."""
    found = {"text": " ".join(part.text for part in parts if part.modality == "text")}
    for part in parts:
        if part.modality == modality != "text" and getattr(part, "problem", None) is None:
            path = folder / "media" / f"{name}.{'png' if hasattr(part, 'image') else 'wav'}"
            part.save(path)
            return found | {"path": str(path.relative_to(folder))}
    return found


def pair(out: Path, scores: Path, margin: float) -> None:
    if not 0 <= margin < float("inf"):
        raise ValueError(f"--margin: got {margin}, allowed are 0 and more.")
    replies = read_replies(out / "replies.jsonl")
    rated: dict[int, list[tuple[float, str]]] = {reply["prompt"]: [] for reply in replies.values()}
    for name, score in read_scores(scores, replies).items():
        if replies[name]["ids"]:
            rated[replies[name]["prompt"]].append((score, name))
    pairs = []
    for found in rated.values():
        if len(found) > 1 and (best := max(found))[0] - (worst := min(found))[0] > 0 and best[0] - worst[0] >= margin:
            chosen, rejected = replies[best[1]], replies[worst[1]]
            if chosen["ids"] == rejected["ids"]:
                continue  # nothing to prefer
            pairs.append({"prompt_ids": chosen["prompt_ids"], "chosen_ids": chosen["ids"]})
            pairs[-1]["rejected_ids"] = rejected["ids"]
    if not pairs:
        raise ValueError(
            f"No pair: no prompt of {out} has two whole and different replies whose scores differ by {margin:g}."
        )
    table = pa.Table.from_pylist(pairs)
    write_whole(out / "pairs.parquet", lambda temporary: pq.write_table(table, temporary))
    print(f"{out / 'pairs.parquet'}: {len(pairs)} pairs, {len(rated) - len(pairs)} prompts left out")


def read_replies(path: Path) -> dict[str, dict]:
    """The replies that `sample` wrote, by id."""
    replies: dict[str, dict] = {}
    for place, line in read_lines(path):
        wrong = [key for key, kind in REPLY.items() if key not in line or not isinstance(line[key], kind)]
        if wrong:
            got = f"{line[wrong[0]]!r:.40}" if wrong[0] in line else "none"
            raise ValueError(f"{place}: got {got} for {wrong[0]!r}. Give the file as `sample` wrote it.")
        if line["id"] in replies:
            raise ValueError(f"{place}: the id {line['id']!r} is there twice. Give the file as `sample` wrote it.")
        replies[line["id"]] = line
    return replies


def read_scores(path: Path, replies: dict[str, dict]) -> dict[str, float]:
    """{id: score}, one of a reply: with two, it could be the best and the worst of its prompt."""
    scores: dict[str, float] = {}
    for place, line in read_lines(path):
        name, score = line.get("id"), line.get("score")
        if not isinstance(name, str) or name not in replies:
            raise ValueError(f"{place}: got the id {name!r:.40}, need an id of replies.jsonl.")
        if not isinstance(score, int | float) or not abs(score) <= sys.float_info.max:  # NaN is not
            raise ValueError(f"{place}: got the score {score!r:.40}, need a finite number.")
        if name in scores:
            raise ValueError(f"{place}: a second score of {name!r}. Give one for each reply, such as the mean.")
        scores[name] = score
    return scores


def read_prompt(line: dict, place: str, samples: int, processor) -> dict:
    """A line of prompts as the model takes it, `[samples, L]`."""
    if isinstance(line.get("text"), str):
        messages: list[dict] = [{"role": "user", "content": line["text"]}]
    elif "messages" in line:
        messages = line["messages"]
    else:
        raise ValueError(f"{place}: got {', '.join(line) or 'nothing'}, need messages, or text.")
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    try:
        messages = copy_messages(messages)
        if messages and messages[-1].get("role") == "assistant":
            raise ValueError("the last message is the assistant's. End with the user's turn.")
        return processor.apply_chat_template([messages] * samples, **options)
    except (ValueError, OSError, TypeError) as error:  # TypeError: a sampling rate that is no number
        raise ValueError(f"{place}: {error}") from error


if __name__ == "__main__":
    run_script(main)
