"""Result files: per-item records appended as they come, then one JSON file with everything a number rests on.

`R/SYSTEM/TASK.json` is the result. While a run is under way, `R/SYSTEM/TASK.KEY.RANK.jsonl` grows by one batch at a
time; KEY stands for all that moves a number (protocol, model, data, judges, seed, versions), so records of another run
are never taken for this one's. Media lie in `R/SYSTEM/media/TASK.KEY/`.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path

import judges
import soundfile
from checkpoints import checkpoint
from PIL import Image
from protocol import Protocol, Row

from processing_anygpt.files import write_text, write_whole
from processing_anygpt.judging.normalisers import normaliser
from processing_anygpt.judging.scores import mean_interval

# Whose version can move a number, where installed.
PACKAGES = (
    "torch", "transformers", "tokenizers", "diffusers", "numpy", "accelerate", "evaluate", "jiwer", "pocketsphinx",
    "Resemblyzer", "speechmos", "basic-pitch", "librosa", "scikit-learn", "onnxruntime", "tinysoundfont", "sacrebleu",
    "whisper-normalizer", "soxr", "pillow",
)  # fmt: skip
# Files of this folder that make numbers, besides those of the packages; the others only show them.
CODE = (
    "adapters", "checkpoints", "examples", "judge_music", "judge_speech", "judges", "protocol", "results", "run",
    "systems", "tiny_examples",
)  # fmt: skip
CORPUS = ("fid", "frechet_audio_distance")  # distances between sets: no score of an item


@functools.cache  # a file edited in the middle of a run does not split it in two
def versions() -> dict:
    """Of Python, the packages, and (as a hash) of the code that makes numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    code = hashlib.sha256()
    for path in code_files():
        code.update(path.read_bytes())
    return found | {"evaluation code": code.hexdigest()[:16]}


def code_files() -> list[Path]:
    """Of this project, what answers and what judges the answers."""
    here = Path(__file__).parent
    packages = [here.parent / name for name in ("modeling_anygpt", "processing_anygpt")]
    found = [*here.glob("metrics/*/*.py"), *(path for folder in packages for path in folder.rglob("*.py"))]
    return [here / f"{name}.py" for name in CODE] + sorted(found)


def key_of(header: dict) -> str:
    """Short name of a run: of all that moves its numbers."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:12]


def append(path: Path, records: list[dict]) -> None:
    """Adds a batch of records in one write that has reached the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        torn = size and os.pread(handle, 1, size - 1) != b"\n"
        os.write(handle, (("\n" if torn else "") + text).encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def read_records(folder: Path, task: str, key: str) -> dict[str, dict]:
    """What earlier runs with this key have done, by id; a line that was cut off is left out."""
    records = {}
    for path in sorted(folder.glob(f"{task}.{key}.*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # texts may hold U+2028 and such
            try:
                record = json.loads(line)
            except ValueError:
                continue
            records[record["id"]] = record
    return records


def save_medium(medium, stem: Path) -> str | None:
    """Writes a sound (.flac, 16 bit) or picture (.png) by a temporary name; its path below the system's folder."""
    if medium is None:
        return None
    stem.parent.mkdir(parents=True, exist_ok=True)
    suffix = ".png" if isinstance(medium, Image.Image) else ".flac"
    path = stem.with_name(stem.name + suffix)
    if suffix == ".png":
        write_whole(path, lambda temporary: medium.save(temporary, format="PNG"))
    else:
        wave, rate = medium[0].clip(-1, 1), medium[1]
        write_whole(path, lambda temporary: soundfile.write(temporary, wave, rate, format="FLAC"))
    return str(path.relative_to(stem.parents[2]))


def write_json(path: Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


# ---------------------------------------------------------------- from records to rows


def score(
    protocol: Protocol, kind: str, examples: list, records: list[dict], folder: Path, options: dict
) -> list[dict]:
    """The rows of a protocol: value with interval, and the score and weight of every item.

    Args:
        kind: of the system; rows that mean nothing for it are left out.
        records: of the examples, in their order.
        folder: what the media's paths are relative to.
        options: of metrics that load a checkpoint: "judges" (their folder) and "device".
    """
    rows = []
    for row in protocol.rows:
        pairs = [
            (example, record) for example, record in zip(examples, records, strict=True)
            if row.group in (None, example.group) and value_of(record, row) is not None
        ]  # fmt: skip
        if kind in row.systems and pairs:
            rows.append(scored(row, *zip(*pairs, strict=True), folder, options))
    return rows


def check_references(protocol: Protocol, examples: list) -> None:
    """Whether error rates have something to be divided by: said before anything is answered.

    Raises:
        ValueError: an example's text of which the row's normaliser leaves nothing.
    """
    for row in protocol.rows:
        if row.metric in ("wer", "cer") and row.against == "texts":
            write = normaliser(row.options.get("normaliser", "none"), row.options.get("spelling"))
            for example in examples:
                if row.group in (None, example.group) and not write(example.texts[0]).strip():
                    raise ValueError(
                        f"{protocol.name}: of the text {example.texts[0]!r} of {example.id} the row {row.name!r} "
                        "leaves no words to be wrong. Leave this item out of the data."
                    )


def value_of(record: dict, row: Row):
    """What of a record the row's metric takes; None: this record was not judged for it."""
    if row.field in ("text", "transcript", "medium"):
        return record[row.field]
    return record["judged"].get(row.field)


def scored(row: Row, examples: tuple, records: tuple, folder: Path, options: dict) -> dict:
    values = [value_of(record, row) for record in records]
    weights = None
    if row.metric == "mean":
        items = values
        value, low, high = mean_interval(items)
    else:
        extra = dict(row.options)
        if row.metric in CORPUS:
            values = [str(folder / value) for value in values]
            references = [example.reference for example in examples]
            revision = extra.pop("revision", None)
            extra["checkpoint"] = checkpoint(extra["checkpoint"], options["judges"], revision)
            extra["device"] = options["device"]
        elif row.against == "text":  # "nothing": a text without a word could not be divided by
            write = normaliser(extra.get("normaliser", "none"), extra.get("spelling"))
            references = [record["text"] if write(record["text"]).strip() else "nothing" for record in records]
        else:
            several = row.metric in ("cider", "bleu")
            references = [list(e.texts) if several else e.texts[0] for e in examples]
        found = judges.metric(row.metric).compute(predictions=values, references=references, **extra)
        items, weights = found.get("items"), found.get("weights")
        value, low, high = found[row.metric], found["low"], found["high"]
    about = {
        key: getattr(row, key) for key in ("name", "judge", "metric", "group", "better", "floor", "bar", "reported")
    }
    numbers = {"value": round(value, 6), "low": round(low, 6), "high": round(high, 6), "count": len(records)}
    if items is None or row.metric == "bleu":  # the corpus's BLEU is no mean of its sentences'
        return about | numbers
    weights = weights or [1] * len(items)
    own = {r["id"]: [round(i, 6), w] for r, i, w in zip(records, items, weights, strict=True)}
    return about | numbers | {"items": own}
