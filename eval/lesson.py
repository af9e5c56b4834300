"""Examine a lesson: what anygpt-tiny knows of it before and after, and what became of the old tasks.

  python eval/lesson.py --data data/lesson --after runs/lesson/model --adapter runs/lesson/adapter --out lesson.json

Asks both models everything in the heldout.jsonl of train/make_lesson.py with the prompts and the decoding of
`protocols/tiny`, and prints a table of accuracies in percent; column "codecs" has what the codecs alone leave of the
right recordings, pictures and tunes. With --adapter it also checks that PEFT loads it and that base + adapter and the
merged model (--after) give the same logits; a difference above 1e-5 is exit code 1.

Judges: exact words of the reply, pixels, pocketsphinx with the enlarged world's grammar, Resemblyzer among six voices.
The judges of voices and instruments are fitted on sounds that went through the codecs, which never met the new ones.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout too

import judge_music  # noqa: E402
import judge_speech  # noqa: E402
import judges  # noqa: E402
import protocol  # noqa: E402
import systems  # noqa: E402
from console import check_count, read_rows, run_script  # noqa: E402

from examples import Example, fewer  # noqa: E402
from processing_anygpt.files import write_text  # noqa: E402
from processing_anygpt.tiny_world import language, lesson  # noqa: E402

TINY = Path(__file__).parents[1] / "modeling_anygpt/pretrained/anygpt_tiny"
MAKING = ("tts", "text_to_image", "text_to_music")  # tasks whose right answer is the medium of the item
BATCH = 32
SAME = 1e-5  # largest difference of logits, of base + adapter and the merged model
LARGEST_LOSS = 2.0  # points that an old task may lose
COMPARED = 4  # prompts of each kind for that
RATE = 16_000  # Hz, of all sounds of the lesson


@dataclass
class Score:
    """Right answers of a line of the table; of words, `right` and `count` are words."""

    right: float = 0
    count: int = 0
    items: list = field(default_factory=list)  # what was judged, for the JSON file

    def add(self, right: float, count: int, item: dict) -> None:
        self.right, self.count = self.right + right, self.count + count
        self.items.append(item | {"right": right, "of": count})

    @property
    def percent(self) -> float:
        return 100 * self.right / self.count

    def change_since(self, before: "Score") -> tuple[float, float]:
        """Points gained since `before`, on the same items, and their standard error over such items."""
        gains = [new["right"] - old["right"] for new, old in zip(self.items, before.items, strict=True)]
        spread = statistics.stdev(gains) * len(gains) ** 0.5 if len(gains) > 1 else 0.0
        return 100 * sum(gains) / self.count, 100 * spread / self.count


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of train/make_lesson.py")
    parser.add_argument("--before", default=str(TINY), help="the checkpoint that was taught (default: anygpt-tiny)")
    parser.add_argument("--after", required=True, help="the merged model")
    parser.add_argument("--adapter", help="checked against --after")
    parser.add_argument("--sound-font", default="/usr/share/sounds/sf2/TimGM6mb.sf2")
    parser.add_argument("--limit", type=int, help="items of each kind, for a trial")
    parser.add_argument("--candidates", type=int, help="replies to choose from (default: what the checkpoints say)")
    parser.add_argument("--out", type=Path, required=True, help="JSON with the table and every answer")
    args = parser.parse_args(argv)
    logging.disable_progress_bar()
    items = read_items(args.data, args.limit)
    if args.adapter and not (Path(args.adapter) / "adapter_config.json").is_file():
        raise ValueError(f"{args.adapter} is no adapter: it has no adapter_config.json. Give the one in --after.")
    for folder in (args.before, args.after):
        systems.Model(folder, folder, torch.device("cpu"))  # what is wrong with it is said now, not in half an hour
    sitting = partial(sit, items=items, sound_font=args.sound_font, taught=args.before, candidates=args.candidates)
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:  # the third, the codecs, is soon done
        before, after, codecs = pool.map(sitting, (args.before, args.after, None))
    report = table(before, after, codecs)
    same = True
    if args.adapter:
        report["largest_logit_difference"] = logit_difference(args.before, args.adapter, args.after, items)
        same = report["largest_logit_difference"] <= SAME
        print(f"base + adapter against merged: logits differ by {report['largest_logit_difference']:.2e} at most")
    scores = {"before": before, "after": after, "codecs": codecs}
    report["items"] = {name: {line: s.items for line, s in lines.items()} for name, lines in scores.items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, json.dumps(report, indent=1))
    return 0 if same else 1


def read_items(data: Path, limit: int | None) -> dict[tuple[str, str], list[Example]]:
    """(task, group) -> examples, evenly thinned to `limit`; paths made whole."""
    check_count("--limit", limit)
    maker = f"train/make_lesson.py --out {data}"
    items = defaultdict(list)
    for number, row in enumerate(read_rows(data / "heldout.jsonl", ("task", "group", "text"), maker)):
        given = next((row[name] for name in ("speech", "image", "music") if name in row), None)
        if given is None:
            raise ValueError(f"{data / 'heldout.jsonl'}:{number + 1} has no speech, image or music. Use {maker}.")
        inner = language.core(row["text"]) if row["task"] == "speech_chat" else row["text"]
        medium = str(data / given)
        items[row["task"], row["group"]].append(
            Example(
                str(number), (inner,), row["group"], medium,
                reference=medium if row["task"] in MAKING else None,
                voice=str(data / row["voice"]) if "voice" in row else None,
                speaker=row.get("speaker"),
                to="image" if row["task"] == "speech_chat" else None,
            )
        )  # fmt: skip
    return {key: fewer(found, limit) for key, found in items.items()}


def sit(folder: str | None, items: dict, sound_font: str, taught: str, candidates: int | None) -> dict[str, Score]:
    """The examination of one checkpoint, or of the codecs by themselves (None), in a process of its own."""
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    logging.disable_progress_bar()
    with lesson.enlarged():
        panel = Panel(items, sound_font, taught)
        if folder is None:
            answered = {key: examples for key, examples in items.items() if examples[0].reference}
            return examine(systems.Reference("codecs", taught), answered, panel)
        return examine(systems.Model(folder, folder, torch.device("cpu"), candidates=candidates), items, panel)


def examine(system: systems.System, items: dict, panel: "Panel") -> dict[str, Score]:
    """Every line of the table that `items` ask for."""
    scores: dict[str, Score] = defaultdict(Score)
    for (task, group), examples in items.items():
        wanted = protocol.read(protocol.FOLDER / "tiny" / f"{task}.yaml")
        for start in range(0, len(examples), BATCH):
            batch = examples[start : start + BATCH]
            for example, output in zip(batch, system.answer(wanted, batch, seed=start), strict=True):
                for line, right, count, item in panel.lines(task, group, example, output):
                    scores[line].add(right, count, item)
        print(f"{system.name}: {task} {group}, {len(examples)} items", file=sys.stderr, flush=True)
    return scores


class Panel:
    """The judges. Each method gives lines of the table for an answer: (line, right, of, what was judged)."""

    def __init__(self, items: dict, sound_font: str, checkpoint: str):
        codec = systems.Reference("codec", checkpoint)
        heard = [example for (task, _), examples in items.items() if task == "asr" for example in examples]
        copies = codec.through_codec("speech", [example.given for example in heard], 0)
        self.centroids = judge_speech.voice_centroids([wave for wave, _ in copies], [e.speaker for e in heard])
        self.instrument = judge_music.InstrumentJudge(
            sound_font, per_caption=2, through=lambda wave: codec.through_codec("music", [(wave, RATE)], 0)[0][0]
        )

    def lines(self, task: str, group: str, example: Example, output: systems.Output) -> Iterator[tuple]:
        if task in ("asr", "tts"):
            return self.words(task == "tts", group, example, output)
        if task in ("music_captioning", "text_to_music"):
            return self.tune(task == "text_to_music", group, example, output)
        return self.picture(task, group, example, output)

    def words(self, spoken: bool, group: str, example: Example, output: systems.Output) -> Iterator[tuple]:
        said = example.texts[0]
        heard = judge_speech.transcribe(judges.heard_at(output)) if spoken else output.text
        item = {"said": said, "heard": heard, "speaker": example.speaker}
        if group == "word":
            found = said.split().count(lesson.WORD) == heard.split().count(lesson.WORD)
            yield f"new word {'said' if spoken else 'written'}", float(found), 1, item
        count = len(said.split())
        right = count * max(0.0, 1 - judge_speech.word_error_rate([said], [heard]))
        done = "words said" if spoken else "words written"
        among = {"word": f"new word: all {done}", "voice": f"new voice: {done}", "old": f"old: {done}"}
        yield among[group], right, count, item
        if spoken and group != "word":
            near = judge_speech.nearest_voice(judges.heard_at(output), self.centroids)
            line = "new voice spoken with" if group == "voice" else "old: voice of the prompt"
            yield line, float(near == example.speaker), 1, {"asked": example.speaker, "nearest": near}

    def picture(self, task: str, group: str, example: Example, output: systems.Output) -> Iterator[tuple]:
        done = {"image_captioning": "described", "text_to_image": "drawn", "speech_chat": "drawn as asked aloud"}[task]
        judge = judges.scene_words if task == "image_captioning" else judges.scene_pixels
        line = f"new object {done}" if group == "object" else f"old: pictures {done}"
        yield line, judge([example], [output])[0]["right"], 1, {"wanted": example.texts[0], "said": output.text}

    def tune(self, played: bool, group: str, example: Example, output: systems.Output) -> Iterator[tuple]:
        wanted = example.texts[0]
        what = "new instrument" if group == "instrument" else "old: instruments"
        if played:
            heard = self.instrument(*output.medium)
            right = float(heard == language.parse_tune(wanted).instrument)
            yield f"{what} played", right, 1, {"wanted": wanted, "heard": heard}
            return
        found = judges.tune_words([example], [output])[0]
        item = {"wanted": wanted, "said": output.text}
        yield f"{what} named", found["instrument"], 1, item
        whole = float(all(found[name] for name in judges.TUNE_FIELDS))
        yield f"{'new instrument: tunes' if group == 'instrument' else 'old: tunes'} described", whole, 1, item


def table(before: dict[str, Score], after: dict[str, Score], codecs: dict[str, Score]) -> dict:
    """Prints the table; returns it with the largest loss of an old task, in points. A change has its standard error.

    codecs: what they leave of the right answers, of lines where something is made. What is chosen among can be better.
    """
    rows = []
    print("| held out | before, % | after, % | change | codecs, % | of |\n|---|---|---|---|---|---|")
    for line, score in sorted(after.items()):
        change, error = score.change_since(before[line])
        row = {"line": line, "before": before[line].percent, "after": score.percent, "change": change, "error": error}
        row = {key: value if key == "line" else round(value, 1) for key, value in row.items()}
        row |= {"codecs": round(codecs[line].percent, 1) if line in codecs else None, "of": score.count}
        rows.append(row)
        kept = "" if row["codecs"] is None else row["codecs"]
        numbers = f"{row['before']} | {row['after']} | {row['change']:+.1f} +- {row['error']}"
        print(f"| {line} | {numbers} | {kept} | {row['of']} |")
    loss = max([0.0, *(-row["change"] for row in rows if row["line"].startswith("old: "))])
    print(f"old tasks: the largest loss is {loss:.1f} points, {LARGEST_LOSS} are allowed", flush=True)
    return {"rows": rows, "largest_loss": round(loss, 1)}


@torch.inference_mode()
def logit_difference(base: str, adapter: str, merged: str, items: dict) -> float:
    """Largest absolute difference of any logit between base + adapter and the merged model, over held-out prompts.

    Computed in float64, so that it is the merged weights that differ and not the rounding on the way.
    """
    whole = systems.Model("merged", merged, torch.device("cpu"), dtype="float64")
    with_adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).double().eval()
    largest = 0.0
    for (task, _), examples in items.items():
        wanted = protocol.read(protocol.FOLDER / "tiny" / f"{task}.yaml")
        for content in whole.contents(wanted, examples[:COMPARED], seed=0):
            ids = whole.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
                return_tensors="pt",
            )  # fmt: skip
            difference = whole.model(**ids).logits - with_adapter(**ids).logits
            largest = max(largest, float(difference.abs().max()))
    return largest


if __name__ == "__main__":
    run_script(main)
