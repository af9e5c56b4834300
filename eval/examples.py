"""Examples: one thing to be asked and judged each, made from the data that a protocol names.

Layouts of public data sets are read by `adapters.py`, the tiny world's held-out items by `tiny_examples.py`.
"""

import hashlib
import inspect
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
        read = getattr(tiny_examples, source.removeprefix("tiny_"), None)
        found = [Example(**row) for row in called(read, protocol.name, source, folder, **data["options"])]
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
        paths = [folder / "musiccaps-public.csv", folder / "audio"] if source == "musiccaps" else [folder]
        items = called(read[source], protocol.name, source, *paths, **data["options"])
        if data["items"] not in (None, len(items)):
            raise ValueError(
                f"{protocol.name}: {folder} holds {len(items)} items, {data.get('version', source)} has "
                f"{data['items']}. Unpack the archives again."
            )
        found = as_examples(protocol.task, sample(items, data["sample"], protocol.name), items)
    return found


def called(read, name: str, source: str, *folders: Path, **options) -> list:
    """What a reader of data finds. Raises ValueError if there is none, or if it takes no such options."""
    if not callable(read):
        raise ValueError(f"{name}: unknown data source {source!r}. See eval/protocols/README.md.")
    try:
        inspect.signature(read).bind(*folders, **options)
    except TypeError as error:
        known = ", ".join(list(inspect.signature(read).parameters)[len(folders) :])
        raise ValueError(f"{name}: options of {source}: {error}. Known: {known}.") from None
    return read(*folders, **options)


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
    if set(wanted) != {"count", "seed"}:
        raise ValueError(f"{name}: got a sample of {wanted}. Give its count and seed, or a list, or leave it out.")
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
        alone = [item.id for item in items if len(by_speaker[item.speaker]) == 1]
        if alone:  # the prompt would be the right answer
            raise ValueError(
                f"The speaker of {alone[0]} has no other recording to be prompted with, nor have those of "
                f"{len(alone) - 1} more items. Leave such items out of the data."
            )
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


def media_hash(examples: list[Example]) -> str:
    """Of what is shown, and of reference files: with `list_hash` it tells other data with the same ids and texts.

    References that are no files are left out: `tiny_examples` makes them from the texts.
    """
    total = hashlib.sha256()
    for example in examples:
        for medium in (example.given, example.voice, example.reference):
            if isinstance(medium, (str, bytes)):
                total.update(Path(medium).read_bytes() if isinstance(medium, str) else medium)
            elif medium is not None and medium is not example.reference:
                total.update(medium[0].tobytes() if isinstance(medium, tuple) else medium.tobytes())
    return total.hexdigest()


def sound(medium: Any, sampling_rate: int | None = None) -> tuple:
    """A sound as `(float32 [T], Hz)`; at its own rate unless one is given."""
    if isinstance(medium, tuple):
        waveform, rate = medium
        return (
            (waveform, rate)
            if sampling_rate in (None, rate)
            else (load_audio(waveform, sampling_rate, rate), sampling_rate)
        )
    try:
        rate = sampling_rate or soundfile.info(io.BytesIO(medium) if isinstance(medium, bytes) else medium).samplerate
    except soundfile.LibsndfileError as error:
        name = f"{len(medium)} bytes" if isinstance(medium, bytes) else medium
        raise ValueError(f"Can't read {name} as audio: {error.error_string.rstrip('.')}. Fetch it again.") from None
    return load_audio(medium, rate), rate


def picture(medium: Any) -> Image.Image:
    return medium if isinstance(medium, Image.Image) else load_image(medium)
