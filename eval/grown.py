"""Examine a text model that was grown and taught to hear and speak.

  python eval/grown.py --model runs/smollm2_speech/model --out out/smollm2_speech.json

Three questions about SmolLM2 after `make smollm2-speech`, on sentences of the tiny world that it was never taught
(heldout.jsonl of train/make_readings.py):

  asr   words wrong in what it writes down
  tts   words wrong in what it says, as pocketsphinx hears it with the world's grammar; "codec" is the same for the
        recording's own codes through the same decoder, the best it could do, and "original" for the recording. The
        reply may write words between its sounds (train/word_by_word.py); what is judged is the sound, joined. With
        --candidates the best of several, in which the model itself most surely hears what it was given to say
  text  perplexity of plain English (eval/plain_english.txt, written for this) and of a licence, before and after

"Before" is the backbone as it came, with its own vocabulary; "after" also pays for what codes take from text.
Prints JSON; --out keeps it with every answer.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoProcessor
from transformers.utils import logging

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout too

import judge_speech  # noqa: E402
from console import check_count, read_rows, run_script  # noqa: E402

from processing_anygpt import generate_best  # noqa: E402
from processing_anygpt.files import write_text  # noqa: E402
from serving_anygpt.grow import find_backbone, load_backbone  # noqa: E402

TEXTS = (ROOT / "eval" / "plain_english.txt", ROOT / "LICENSE")
ASR, TTS = "write down what you hear", "read this aloud "
BATCH = 20
PRESETS = {"text": {"top_k": 1}, "speech": {"temperature": 0.5, "top_p": 0.9}}  # words are the likeliest, no draw
WINDOW = 512  # tokens that a perplexity is measured over


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the trained model")
    parser.add_argument("--backbone", default="data/smollm2", help="what was grown (default: data/smollm2)")
    parser.add_argument("--data", type=Path, default=Path("data/readings"), help="folder of train/make_readings.py")
    parser.add_argument("--texts", nargs="+", type=Path, default=TEXTS, help="plain text that was not trained on")
    parser.add_argument(
        "--candidates", type=int, default=1, help="spoken replies to choose from, by what it hears in them"
    )
    parser.add_argument("--limit", type=int, help="held-out sentences, for a trial (default: all)")
    parser.add_argument("--out", type=Path, help="JSON file, with every answer")
    args = parser.parse_args(argv)
    logging.disable_progress_bar()
    items = read_items(args.data, args.limit)
    texts = {path.name: path.read_text(encoding="utf-8") for path in args.texts}
    backbone, tokenizer = load_backbone(find_backbone(args.backbone))
    before = {name: perplexity(backbone, tokenizer, text) for name, text in texts.items()}
    processor = AutoProcessor.from_pretrained(args.model, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(args.model, local_files_only=True).eval()
    report: dict[str, Any] = {"sentences": len(items), "perplexity": {}}
    for name, text in texts.items():
        after = perplexity(model, processor.tokenizer, text)
        change = 100 * (after / before[name] - 1)
        report["perplexity"][name] = {"before": before[name], "after": after, "change_percent": change}
    answers = speech_answers(model, processor, items, args.candidates)
    said = [item["text"] for item in items]
    report |= {f"{name}_wer": judge_speech.word_error_rate(said, heard) for name, heard in answers.items()}
    print(json.dumps(report, indent=1))
    if args.out:
        listed = [{"text": text, **{name: heard[i] for name, heard in answers.items()}} for i, text in enumerate(said)]
        whole = json.dumps(report | {"items": listed}, indent=1) + "\n"
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(args.out, whole)


def read_items(data: Path, limit: int | None) -> list[dict]:
    """Held-out {"text", "speech": path}."""
    check_count("--limit", limit)
    maker = f"train/make_readings.py --out {data}"
    rows = read_rows(data / "heldout.jsonl", ("text", "speech"), maker)[:limit]
    return [row | {"speech": str(data / row["speech"])} for row in rows]


@torch.inference_mode()
def perplexity(model: Any, tokenizer: Any, text: str) -> float:
    """Of `text` in windows of WINDOW tokens, each read from its own beginning."""
    ids = tokenizer(" ".join(text.split()), return_tensors="pt", add_special_tokens=False)["input_ids"]
    loss, count = 0.0, 0
    for window in ids[0].split(WINDOW):
        if len(window) > 1:
            logits = model(window[None], use_cache=False).logits[0, :-1].float()
            loss += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
            count += len(window) - 1
    if not count:
        raise ValueError("A text for the perplexity is empty. Give files with some sentences.")
    return float(torch.exp(torch.tensor(loss / count)))


def speech_answers(model: Any, processor: Any, items: list[dict], candidates: int) -> dict[str, list[str]]:
    """What was written down ("asr"), and what pocketsphinx heard of "tts", "codec" and "original"."""
    answers: dict[str, list[str]] = {"asr": [], "tts": [], "codec": [], "original": []}
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        codes = processor.encode_media("speech", [item["speech"] for item in batch])
        asked = [[text(ASR), {"type": "speech", "codes": item}] for item in codes]
        answers["asr"] += [words_of(reply) for reply in replies(model, processor, asked, "text", 40)]
        asked = [[text(TTS + item["text"])] for item in batch]
        spoken = [heard_in(reply) for reply in replies(model, processor, asked, "speech", 400, candidates)]
        answers["tts"] += spoken
        answers["codec"] += [heard_in([part]) for part in processor.decode_codes("speech", codes)]
        answers["original"] += [judge_speech.transcribe(recording(item["speech"])) for item in batch]
    return answers


def text(words: str) -> dict:
    return {"type": "text", "text": words}


@torch.inference_mode()
def replies(
    model: Any, processor: Any, contents: list[list[dict]], modality: str, longest: int, candidates: int = 1
) -> list[list]:
    """Parts of the reply to each user turn."""
    torch.manual_seed(0)
    ids = processor.apply_chat_template(
        [[{"role": "user", "content": content}] for content in contents],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    required = () if modality == "text" else (modality,)
    wanted = {"output_modalities": ("text", *required), "required_modalities": required}
    best = {"candidates": candidates, "instruction": ASR, "openings": [TTS.strip()]}
    output = generate_best(model, processor, **ids, **wanted, **best, max_new_tokens=longest, modality_presets=PRESETS)
    return [processor.parse_output(reply, joined=required) for reply in output[:, ids["input_ids"].shape[1] :]]


def words_of(parts: list) -> str:
    return " ".join(part.text.strip() for part in parts if part.modality == "text")


def heard_in(parts: list) -> str:
    """What pocketsphinx hears in the first sound; nothing where there is none."""
    waves = [part.waveform for part in parts if getattr(part, "waveform", None) is not None]
    return judge_speech.transcribe(waves[0]) if waves else ""


def recording(path: str):
    import soundfile

    return soundfile.read(path, dtype="float32")[0]  # made at 16 kHz


if __name__ == "__main__":
    run_script(main)
