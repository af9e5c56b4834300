"""Recordings with their texts -> conversations in which the reply writes each word and then says it.

  python train/word_by_word.py data/readings/sentences.jsonl --model data/smollm2_start --out word_by_word.jsonl

A text model copies words easily; which word it is at in the middle of a sound, it learns late. So the recording is cut
where words begin, and each piece of its codes stands behind its word: "read this aloud two cats" is answered by "two",
the codes of "two", "cats", the codes of "cats". Nothing of the sound is lost: `parse_output(..., joined=("speech",))`
makes one of the pieces. OUT is a manifest for prepare_data.py.

DATA: .jsonl of {"text", "speech": path}, as train/make_readings.py writes them. pocketsphinx finds the words
(`make eval-deps`); recordings in which it does not are left out, and said to be.
"""

import argparse
import re
from pathlib import Path

import numpy as np
from jsonl import read_lines, write_lines
from make_codec_data import hear_words, to_frames
from recipe import load_processor
from settings import run_script
from tqdm import tqdm

from processing_anygpt.instructions import choose, load_instructions
from processing_anygpt.media import load_audio
from processing_anygpt.vocabulary import find_modality

RATE = 16_000  # Hz, of the aligner
FEWEST = 3  # frames of a word
BATCH = 32


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path, metavar="DATA")
    parser.add_argument("--model", required=True, help="checkpoint whose codec makes the codes")
    parser.add_argument("--out", required=True, type=Path, help=".jsonl file")
    parser.add_argument("--instructions", metavar="YAML", help="sentences to ask with, as for prepare_data.py")
    parser.add_argument("--seed", type=int, default=0, help="of the instructions")
    args = parser.parse_args(words)
    items = [item for path in args.data for item in read_items(path)]
    processor = load_processor(args.model)
    frame_rate = find_modality(processor.specs, "speech").frame_rate
    asked = load_instructions([spec.name for spec in processor.specs], args.instructions)
    conversations = []
    for start in tqdm(range(0, len(items), BATCH), unit=" batches"):
        batch = items[start : start + BATCH]
        waves = [load_audio(path, RATE) for _, path in batch]
        encoded = processor.encode_media("speech", [(wave, RATE) for wave in waves])
        for number, ((text, _), wave, codes) in enumerate(zip(batch, waves, encoded, strict=True), start):
            content = pieces(text, codes, begins(text, wave), frame_rate)
            if content:
                request = choose(asked, "text->speech", args.seed, f"{number} {text}").replace("{text}", text)
                turns = [{"role": "user", "content": request}, {"role": "assistant", "content": content}]
                conversations.append({"messages": turns})
    if not conversations:
        raise ValueError(f"In none of {len(items)} recordings were the words of its text found. Are they English?")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_lines(args.out, conversations)
    print(f"{len(items) - len(conversations)} recordings left out")


def read_items(path: Path) -> list[tuple[str, str]]:
    """(text, path of the recording) of every line."""
    items = []
    for place, line in read_lines(path):
        if not isinstance(line.get("text"), str) or not isinstance(line.get("speech"), str):
            raise ValueError(f'{place} is not {{"text": ..., "speech": path}}.')
        items.append((line["text"], str(path.parent / line["speech"])))
    return items


def begins(text: str, wave: np.ndarray) -> list[float] | None:
    """Seconds at which the words of `text`, split at spaces, begin in wave [T]; None where they are not found."""
    plain = [re.sub(r"[^a-z']", "", word.lower()) for word in text.split()]
    return hear_words(to_frames(wave), plain) if all(plain) else None


def pieces(text: str, codes: np.ndarray, seconds: list[float] | None, frame_rate: float) -> list[dict]:
    """Blocks of text and codes `[K, T]` in turn; none where a word would have no codes. Silence goes with the word
    before it, that at the beginning with the first."""
    if not seconds:
        return []
    cuts = [0, *(round(second * frame_rate) for second in seconds[1:]), codes.shape[1]]
    if min(np.diff(cuts)) < FEWEST:
        return []
    blocks = []
    for word, start, end in zip(text.split(), cuts, cuts[1:], strict=False):
        blocks.append({"type": "text", "text": word})
        blocks.append({"type": "speech", "codes": codes[:, start:end].tolist()})
    return blocks


if __name__ == "__main__":
    run_script(main)
