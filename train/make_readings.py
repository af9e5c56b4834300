"""Raw data that teach a grown text model to read aloud and to write down.

  python train/make_readings.py --out data/readings

Digit strings and everyday sentences of the tiny world in one voice that never varies, and plain text, so that what the
model knew is not forgotten. OUT holds

  phrases.jsonl     {"text", "speech"}: one to three words, where the words are learned
  sentences.jsonl   {"text", "speech"}: whole sentences
  text.jsonl        {"messages"}: paragraphs of the manual that comes with Python
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

from make_lesson import Studio, write_lines
from settings import run_script

from processing_anygpt.tiny_world import language

RULES = ("digits", "everyday")
PHRASES = (
    "<digit>", "<digit> <digit>", "the <noun>", "the <size> <noun>", "a <colour> <object>", "<verb> the <object>",
    "the <object> <when>",
)  # fmt: skip
PARAGRAPH = range(150, 900)  # characters
COUNTS = {"phrases": 500, "sentences": 2400, "text": 500, "heldout": 60}


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--voice", default="flite_slt", help="of processing_anygpt/tiny_world/voices.py")
    parser.add_argument("--scale", type=float, default=1.0, help="of all counts, for a trial")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    studio = Studio(args.out, "", random.Random(args.seed))
    counts = {name: max(2, round(count * args.scale)) for name, count in COUNTS.items()}
    heldout = sentences(counts["heldout"], studio.rng, held_out=True)
    texts = {"heldout": heldout, "phrases": phrases(counts["phrases"], studio.rng)}
    texts["sentences"] = sentences(counts["sentences"], studio.rng, held_out=False)
    for name, said in texts.items():
        rows = ({"text": text, "speech": studio.say(text, args.voice)} for text in said)
        write_lines(args.out / f"{name}.jsonl", rows)
    turns = ([{"role": "assistant", "content": text}] for text in plain_text(counts["text"], studio.rng))
    write_lines(args.out / "text.jsonl", ({"messages": messages} for messages in turns))


def sentences(count: int, rng: random.Random, held_out: bool) -> Iterable[str]:
    """Different sentences, of each rule in turn."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[language.sample(RULES[len(found) % len(RULES)], rng, held_out)] = None
    return list(found)


def phrases(count: int, rng: random.Random) -> Iterable[str]:
    """Different phrases; fewer than `count` where there are no more."""
    drawn = (rng.choice(PHRASES) for _ in range(20 * count))
    found = dict.fromkeys(re.sub(r"<(\w+)>", lambda match: language.expand(match[1], rng), text) for text in drawn)
    # Two digits are no sentence, but one rule may grow: what is examined is never taught.
    return [text for text in found if not language.is_held_out(text)][:count]


def plain_text(count: int, rng: random.Random) -> list[str]:
    """Paragraphs of prose from Python's manual, in random order."""
    blocks = [block for text in topics.values() for block in re.split(r"\n\s*\n", text) if block[:1].isupper()]
    prose = [" ".join(block.split()) for block in blocks if "::=" not in block and "\n " not in block]
    found = sorted({text for text in prose if len(text) in PARAGRAPH and text.endswith(".")})
    return rng.sample(found, min(count, len(found)))


if __name__ == "__main__":
    run_script(main)
