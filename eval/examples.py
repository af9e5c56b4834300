"""Examples: one thing to be asked and judged each, made from the data that a protocol names.

Layouts of public data sets are read by `adapters.py`, the tiny world's held-out items by `tiny_examples.py`.
"""

import hashlib
import io
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adapters
import soundfile
import tiny_examples
from PIL import Image
from protocol import Protocol

from processing_anygpt.media import load_audio, load_image


@dataclass
class Example:
    """A sound is a path, bytes or `(waveform [T], Hz)`; a picture a path, bytes or a PIL image.

    Attributes:
        id: unique and stable; `group`: rows of the table may be restricted to one.
        texts: what was said, what is to be said, or captions (references, or the first one as the prompt).
        given: the medium that is shown to the model.
        reference: the medium as it should come out, where there is one.
        voice: the recording whose voice is to speak; `speaker`: its name.
        to: modality of the answer, where the task leaves it open; several: what a sampled reply may hold.
    """

    id: str
    texts: tuple[str, ...]
    group: str = ""
    given: Any = None
    reference: Any = None
    voice: Any = None
    speaker: str | None = None
    to: Any = None


def load(protocol: Protocol, root: Path) -> list[Example]:
    """The examples of a protocol, in their fixed order. `root`: the folder that holds the data sets' folders.

    Raises:
        ValueError: data that are not there or not complete; other data than the protocol's sample list names.
    """
    data = {"folder": ".", "options": {}, "sample": {}, "items": None} | protocol.data
    unknown = set(data) - {"source", "folder", "version", "options", "sample", "items"}
    if unknown:
        raise ValueError(f"{protocol.name}: unknown keys of data: {sorted(unknown)}.")
    folder, source = Path(root) / data["folder"], data["source"]
    if source.startswith("tiny_"):
        found = [
            Example(**row) for row in getattr(tiny_examples, source.removeprefix("tiny_"))(folder, **data["options"])
        ]
    else:
        read = {
            "librispeech": adapters.librispeech,
            "vctk": adapters.vctk,
            "coco": adapters.coco,
            "musiccaps": adapters.musiccaps,
            "saved_dataset": adapters.saved_dataset,
        }
        if source not in read:
            raise ValueError(f"{protocol.name}: unknown data source {source!r}. Known: tiny_..., {', '.join(read)}.")
        paths = {"csv": folder / "musiccaps-public.csv", "audio": folder / "audio"} if source == "musiccaps" else {}
        items = read[source](**paths, **data["options"]) if paths else read[source](folder, **data["options"])
        if data["items"] not in (None, len(items)):
            raise ValueError(
                f"{protocol.name}: {folder} holds {len(items)} items, {data['version']} has {data['items']}. "
                "Unpack the archives again."
            )
        found = as_examples(protocol.task, sample(items, data["sample"], protocol.name), items)
    return found


def sample(items: list, wanted: dict, name: str) -> list:
    """All items, `{"count", "seed"}` of them drawn once, or those of a `{"list": FILE}` of ids beside the protocol."""
    if "list" in wanted:
        ids = (Path(__file__).parent / "protocols" / wanted["list"]).read_text(encoding="utf-8").split()
        known = {item.id: item for item in items}
        missing = [i for i in ids if i not in known]
        if missing:
            raise ValueError(f"{name}: {len(missing)} of {len(ids)} items are missing, first {missing[0]!r}.")
        return [known[i] for i in ids]
    if not wanted:
        return items
    if len(items) < wanted["count"]:
        raise ValueError(
            f"{name}: the data hold {len(items)} items, the protocol draws {wanted['count']}. Complete them."
        )
    chosen = random.Random(wanted["seed"]).sample(range(len(items)), wanted["count"])
    return [items[i] for i in sorted(chosen)]


def as_examples(task: str, items: list, known: list) -> list[Example]:
    """Items of a data set as examples of a task. `known`: all items of the data set."""
    if task == "tts":  # the voice comes from the next recording of the same speaker
        by_speaker: dict[str, list] = {}
        for item in known:
            by_speaker.setdefault(item.speaker, []).append(item)
        others = {i.id: group[(k + 1) % len(group)] for group in by_speaker.values() for k, i in enumerate(group)}
        return [Example(i.id, i.texts, reference=i.media, voice=others[i.id].media, speaker=i.speaker) for i in items]
    if task in ("text_to_image", "text_to_music"):
        return [Example(i.id, i.texts, reference=i.media) for i in items]
    if task == "speech_chat":
        return [Example(i.id, i.texts, given=i.media, voice=i.media) for i in items]
    return [Example(i.id, i.texts, given=i.media, speaker=i.speaker) for i in items]


def target_of(protocol: Protocol, example: Example) -> str:
    """The modality of the answer that is judged."""
    return example.to if isinstance(example.to, str) else protocol.target


def fewer(examples: list[Example], limit: int | None) -> list[Example]:
    """At most `limit` examples of each group, evenly spaced."""
    if limit is None:
        return examples
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.group, []).append(index)
    keep = [g[k * len(g) // min(limit, len(g))] for g in groups.values() for k in range(min(limit, len(g)))]
    return [examples[i] for i in sorted(keep)]


def list_hash(examples: list[Example]) -> str:
    """Of ids and texts, in order: two runs with the same hash asked the same things."""
    lines = [f"{e.id}\t{'|'.join(e.texts)}" for e in examples]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def sound(medium: Any, sampling_rate: int | None = None) -> tuple:
    """A sound as `(float32 [T], Hz)`; at its own rate unless one is given."""
    if isinstance(medium, tuple):
        waveform, rate = medium
        return (
            (waveform, rate)
            if sampling_rate in (None, rate)
            else (load_audio(waveform, sampling_rate, rate), sampling_rate)
        )
    rate = sampling_rate or soundfile.info(io.BytesIO(medium) if isinstance(medium, bytes) else medium).samplerate
    return load_audio(medium, rate), rate


def picture(medium: Any) -> Image.Image:
    return medium if isinstance(medium, Image.Image) else load_image(medium)
