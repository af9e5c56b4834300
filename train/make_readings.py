"""Raw data that teach a grown text model to read aloud and to write down.

  python train/make_readings.py --out data/readings

Digit strings and everyday sentences of the tiny world in one voice that never varies, and plain text, so that what the
model knew is not forgotten. OUT holds

  phrases.jsonl     {"text", "speech"}: one to three words, where the words are learned
  sentences.jsonl   {"text", "speech"}: whole sentences
  words.jsonl       {"text", "speech"}: their words in no order, in which no word follows from those before
  text.jsonl        {"document"}: paragraphs of the manual that comes with Python
  own.jsonl         {"document"}: what the backbone writes by itself, the best reminder of what it could
  replies.jsonl     {"messages"}: the same, as replies in a conversation
  heldout.jsonl     {"text", "speech"}: sentences that are in none of them, for eval/grown.py
  media/            the recordings

Recordings that are there already are kept. Needs flite (apt-get install flite).
"""

import argparse
import random
import re
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics

import torch
from jsonl import write_lines
from make_lesson import Studio
from settings import run_script

from processing_anygpt.tiny_world import language
from serving_anygpt.grow import find_backbone, load_backbone

RULES = ("digits", "everyday")
PHRASES = (
    "<digit>", "<digit> <digit>", "the <noun>", "the <size> <noun>", "a <colour> <object>", "<verb> the <object>",
    "the <object> <when>",
)  # fmt: skip
PARAGRAPH = range(150, 900)  # characters
COUNTS = {"phrases": 500, "sentences": 6000, "words": 3000, "text": 500, "own": 3008, "heldout": 60}
OPENINGS = (
    "The", "A", "In", "When", "It", "There", "My", "We", "People", "After", "For", "One", "This", "If", "She", "He",
    "Most", "At", "Every", "To",
)  # fmt: skip
BATCH = {"cpu": 32, "cuda": 4096}  # texts at a time
WRITTEN = 90  # tokens of each


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", default="data/smollm2", help="of `anygpt init` (default: data/smollm2)")
    parser.add_argument("--voice", default="flite_slt", help="of processing_anygpt/tiny_world/voices.py")
    parser.add_argument("--scale", type=float, default=1.0, help="of all counts, for a trial")
    parser.add_argument("--parts", nargs="+", choices=list(COUNTS), default=list(COUNTS), help="default: all")
    parser.add_argument("--device", choices=list(BATCH), default="cpu", help="for the backbone (default: cpu)")
    parser.add_argument("--own", type=int, default=COUNTS["own"], help=f"own texts (default: {COUNTS['own']})")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU. Leave it out; a CPU core takes half an hour.")
    studio = Studio(args.out, "", random.Random(args.seed))
    counts = {name: max(2, round(count * args.scale)) for name, count in (COUNTS | {"own": args.own}).items()}
    heldout = sentences(counts["heldout"], studio.rng, held_out=True)
    texts = {"heldout": heldout, "phrases": phrases(counts["phrases"], studio.rng)}
    texts["sentences"] = sentences(counts["sentences"], studio.rng, held_out=False)
    texts["words"] = jumbled(counts["words"], texts["sentences"], random.Random(f"words-{args.seed}"))
    for name, said in texts.items():
        if name in args.parts:
            rows = ({"text": text, "speech": studio.say(text, args.voice)} for text in said)
            write_lines(args.out / f"{name}.jsonl", rows)
    if "text" in args.parts:
        write_lines(args.out / "text.jsonl", ({"document": text} for text in plain_text(counts["text"], studio.rng)))
    if "own" in args.parts and not (args.out / "own.jsonl").is_file():  # half an hour on one CPU core
        model, tokenizer = load_backbone(find_backbone(args.backbone))
        written = own_text(model.to(args.device), tokenizer, counts["own"], args.seed)
        turns = ([{"role": "assistant", "content": text}] for text in written)
        write_lines(args.out / "replies.jsonl", ({"messages": messages} for messages in turns))
        write_lines(args.out / "own.jsonl", ({"document": text} for text in written))


def sentences(count: int, rng: random.Random, held_out: bool) -> Iterable[str]:
    """Different sentences, of each rule in turn; fewer than `count` where there are no more."""
    found: dict[str, None] = {}
    for number in range(50 * count):
        found[language.sample(RULES[number % len(RULES)], rng, held_out)] = None
        if len(found) == count:
            break
    return list(found)


def phrases(count: int, rng: random.Random) -> Iterable[str]:
    """Different phrases; fewer than `count` where there are no more."""
    drawn = (rng.choice(PHRASES) for _ in range(20 * count))
    found = dict.fromkeys(re.sub(r"<(\w+)>", lambda match: language.expand(match[1], rng), text) for text in drawn)
    # Two digits are no sentence, but one rule may grow: what is examined is never taught.
    return [text for text in found if not language.is_held_out(text)][:count]


def jumbled(count: int, said: list[str], rng: random.Random) -> list[str]:
    """One to six of the words of `said`, drawn by chance."""
    known = sorted({word for text in said for word in text.split()})
    drawn = (" ".join(rng.choices(known, k=rng.randint(1, 6))) for _ in range(2 * count))
    return [text for text in dict.fromkeys(drawn) if not language.is_held_out(text)][:count]


def plain_text(count: int, rng: random.Random) -> list[str]:
    """Paragraphs of prose from Python's manual, in random order."""
    blocks = [block for text in topics.values() for block in re.split(r"\n\s*\n", text) if block[:1].isupper()]
    prose = [" ".join(block.split()) for block in blocks if "::=" not in block and "\n " not in block]
    found = sorted({text for text in prose if len(text) in PARAGRAPH and text.endswith(".")})
    return rng.sample(found, min(count, len(found)))


@torch.inference_mode()
def own_text(model, tokenizer, count: int, seed: int) -> list[str]:
    """Texts that the model goes on with from one of OPENINGS, each as likely as the model makes it."""
    torch.manual_seed(seed)
    written, batch = [], BATCH[model.device.type]
    for start in range(0, count, batch):
        openings = [OPENINGS[i % len(OPENINGS)] for i in range(start, min(start + batch, count))]
        ids = tokenizer(openings, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        drawn = model.generate(**ids, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=WRITTEN)
        written += [text.strip() for text in tokenizer.batch_decode(drawn, skip_special_tokens=True)]
    return written


if __name__ == "__main__":
    run_script(main)
