"""Records of raw data -> rows of token ids: the work of train/prepare_data.py, one unit at a time.

A record with `text` becomes one row for every medium and direction: "speech->text" asks for the text of a recording,
"text->speech" for a recording of the text, in words drawn from the instructions; if wanted, "speech->request" for the
request that it answers, by which `generate_best` chooses among replies. A record with `messages` becomes the row of
that conversation; one with `document` is plain text, without a marker of conversations. Whatever can't become a row is
a reject, `{"source", "task", "reason"}`: so every record and task is found exactly once, in the rows or among the
rejects. Nothing here is random, every draw is a hash of the seed and the source.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from modeling_anygpt import AnyGPTConfig

from . import codec_io, rows
from .conversation import IGNORED, encode_pieces, render, text_only
from .instructions import Instructions, choose, draw
from .media import FETCHED, INLINE, MAX_SECONDS, find_source, image_to_array, load_audio, load_image
from .processing_anygpt import AnyGPTProcessor
from .vocabulary import INSTRUCTION, RESPONSE, Modality, ids_to_codes, item_to_ids

DIRECTIONS = ("both", "random", "x-to-text", "text-to-x")
LOSSES = ("assistant", "all")
TRANSCRIPTS = ("free", "forced", "none")
SLACK_SECONDS = 0.1  # a clip of "5 s" that is a little longer is cut, not refused


@dataclass(frozen=True)
class Settings:
    """Everything that decides what the rows are, besides the data and the checkpoint.

    Args:
        directions: of DIRECTIONS; "random" makes one row of a medium, of either direction with equal chance.
        loss: "assistant": labels on the assistant's turns; "all": on every token, as the paper's alignment stage.
        transcripts: of a spoken message, before its reply. "free": the model learns to write it; "forced": it stands
            there but is not learned (whoever runs the model gives it); "none": left out.
        max_tokens: longer rows are rejected.
        cut: modalities whose sound is cut to the `max_seconds` of the table; of others longer sound is rejected.
        pad_seconds: silence is appended up to a multiple of this, so that more sounds are of equal length and go
            through the codec together; 0: none.
        voice_seconds: of another recording of the same speaker (column "speaker"; else all are of one) before the
            request for speech, as `anygpt generate --voice` puts it there. It is chosen among those of the same unit;
            where there is no other, the request stands alone. 0: none.
        read_back: what a medium is shown with where its request is asked for; None: no such rows.
        columns: name of each column in the data, where it is another.
        instructions: sentences by direction (`load_instructions`).
    """

    max_tokens: int
    directions: str = "both"
    loss: str = "assistant"
    transcripts: str = "free"
    seed: int = 0
    rows_per_shard: int = 256
    pad_seconds: float = 0.0
    voice_seconds: float = 0.0
    read_back: str | None = None
    cut: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    instructions: Instructions = field(default_factory=dict)

    def to_dict(self) -> dict:
        """JSON-able, for the manifest; the instructions as a fingerprint."""
        values = dataclasses.asdict(self) | {"cut": list(self.cut)}
        text = json.dumps(self.instructions, sort_keys=True)
        return values | {"instructions": hashlib.sha256(text.encode()).hexdigest()}


def load_checkpoint(checkpoint: str) -> tuple[AnyGPTConfig, AnyGPTProcessor]:
    """Configuration and processor of a checkpoint; ValueError if it is none of AnyGPT's."""
    try:
        config = AutoConfig.from_pretrained(checkpoint)
        if not isinstance(config, AnyGPTConfig):
            raise ValueError(f"its config.json is that of {config.model_type!r}, not of AnyGPT")
        return config, AnyGPTProcessor.from_pretrained(checkpoint)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # what damaged folders raise
        raise ValueError(f"Can't load the checkpoint {checkpoint}: {error}. Give another --model.") from error


def codec_fingerprints(processor: AnyGPTProcessor) -> dict[str, str]:
    """{modality: fingerprint of its codec's config and weights}; one on the hub is known by its name alone."""
    found = {}
    for spec in processor.specs:
        folder = Path(spec.codec) if "/" in spec.codec else Path(str(processor.shelf.source)) / spec.codec
        files = [*folder.glob("*.json"), *folder.glob("*.safetensors")] if folder.is_dir() else []
        found[spec.name] = rows.fingerprint(files) if files else f"hub:{spec.codec}"
    return found


@dataclass
class Draft:
    """A row to be: its conversation and those of its blocks that need a codec; or a document, of one or more rows.
    `speaker`: of the recording in a conversation made from a text."""

    source: str
    task: str
    messages: list[dict] = field(default_factory=list)
    media: list[dict] = field(default_factory=list)
    document: str | None = None
    speaker: str | int | None = None


def prepare(
    records: Iterable[tuple[str, Any]], folder: str, processor: AnyGPTProcessor, settings: Settings
) -> tuple[list[dict], list[dict]]:
    """Rows (`rows.make_row`) and rejects of the records of one unit.

    Args:
        records: (source id, record), as `sources.read` gives them.
        folder: what relative paths in records are relative to.
    """
    drafts: list[Draft] = []
    rejects: list[dict] = []
    for source, record in records:
        source = source.encode("utf-8", "backslashreplace").decode()  # names of files may be no text
        try:
            if isinstance(record, ValueError):
                raise record
            drafts += draft_rows(source, record, processor.specs, settings)
        except ValueError as error:
            rejects.append(reject(source, None, error))
    problems = encode_blocks([block for draft in drafts for block in draft.media], folder, processor, settings)
    if settings.voice_seconds:
        give_voices(drafts, processor.specs, settings)
    made = []
    for draft in drafts:
        met = [problems[id(block)] for block in draft.media if id(block) in problems]
        try:
            if met:
                raise ValueError(met[0])
            if draft.document is None:
                pieces = [(draft.source, *tokenise(draft.messages, processor, settings))]
            else:
                pieces = cut_document(draft, processor, settings)
            made += [rows.make_row(ids, labels, draft.task, source, processor.specs) for source, ids, labels in pieces]
        except ValueError as error:
            rejects.append(reject(draft.source, draft.task, error))
    return made, rejects


def reject(source: str, task: str | None, error: ValueError) -> dict:
    return {"source": source, "task": task, "reason": " ".join(str(error).split())}


# ---------------------------------------------------------------- records to conversations


def column_names(given: dict[str, str], modalities: Sequence[str]) -> dict[str, str]:
    """What a record may hold -> its column: as `given`, else of its own name."""
    return {name: given.get(name, name) for name in ("messages", "document", "text", "speaker", *modalities)}


def draft_rows(source: str, record: dict, specs: Sequence[Modality], settings: Settings) -> list[Draft]:
    """The conversations of a record, their media not yet encoded; ValueError if it has none."""
    names = [spec.name for spec in specs]
    wanted = column_names(settings.columns, names)
    values = {name: record[key] for name, key in wanted.items() if record.get(key) is not None}
    if "messages" in values:
        messages = with_transcripts(copy_messages(values["messages"]), settings.transcripts)
        blocks = [block for message in messages for block in blocks_of(message)]
        return [Draft(source, "messages", messages, [block for block in blocks if block.get("type") in names])]
    present = [name for name in names if name in values]
    kind = "document" if "document" in values and not present else "text"
    text = values.get(kind)
    if not isinstance(text, str) or not text.strip():
        alone = f", or a document in {wanted['document']!r}" if not values else ""
        raise ValueError(f"No text: need a string in {wanted[kind]!r}{alone}, got {text!r:.40}.")
    if kind == "document":
        return [Draft(source, kind, document=text)]
    speaker = values.get("speaker")
    if not isinstance(speaker, str | int | None):
        raise ValueError(f"Got {wanted['speaker']!r} of type {type(speaker).__name__}, need a string or a number.")
    if not present:
        raise ValueError(f"No medium beside the text: need one of {', '.join(wanted[name] for name in names)}.")
    drafts = []
    for name in present:
        value = values[name]
        block = (without_nulls(value) if isinstance(value, dict) else {name: value}) | {"type": name}
        for task in tasks(name, source, settings):
            sentence = words(
                choose(settings.instructions, task, settings.seed, source).replace("{text}", text.strip())
            )
            if task.endswith("->text"):
                asked = {task: ([sentence, block], [words(text.strip())])}
            else:
                asked = {task: ([sentence], [block])}
                if settings.read_back is not None:
                    asked[f"{name}->request"] = ([words(settings.read_back), block], [sentence])
            for task, (user, reply) in asked.items():
                messages = [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]
                drafts.append(Draft(source, task, messages, [block], speaker=speaker))
    return drafts


def words(text: str) -> dict:
    return {"type": "text", "text": text}


def tasks(modality: str, source: str, settings: Settings) -> list[str]:
    """The rows that a medium with a text becomes."""
    both = [f"{modality}->text", f"text->{modality}"]
    if settings.directions == "both":
        return both
    if settings.directions == "random":
        return [both[draw(settings.seed, source, modality, "direction") % 2]]
    return both[:1] if settings.directions == "x-to-text" else both[1:]


def copy_messages(messages: Any) -> list[dict]:
    """A copy in which blocks may be changed."""
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"Can't read the JSON of messages: {error}.") from error
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"Got messages of type {type(messages).__name__}, need a list of {{'role', 'content'}}.")
    copies = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list) and all(isinstance(block, dict) for block in content):
            content = [without_nulls(block) for block in content]
        elif not isinstance(content, str):
            raise ValueError(f"Got content of type {type(content).__name__}, need a string or a list of blocks.")
        copies.append({"role": message.get("role"), "content": content})
    for block in (block for message in copies for block in blocks_of(message)):
        if block.get("type") == "audio":
            block["type"] = "speech"  # as the processor's apply_chat_template
        key = {"text": "text", "transcript": "text", "speech": "transcript"}.get(str(block.get("type")))
        if key is not None and not isinstance(block.get(key, "" if key == "transcript" else None), str):
            raise ValueError(f"Got {key} of type {type(block.get(key)).__name__} in a block, need a string.")
    return copies


def without_nulls(fields: dict) -> dict:
    """Parquet makes nulls of absent fields."""
    return {key: value for key, value in fields.items() if value is not None}


def blocks_of(message: dict) -> list[dict]:
    return [] if isinstance(message["content"], str) else message["content"]


def with_transcripts(messages: list[dict], transcripts: str) -> list[dict]:
    """Replies to speech begin with what was said, if the speech block tells it in "transcript"; or never ("none")."""
    said: list[str] = []
    for message in messages:
        blocks = blocks_of(message)
        if message["role"] == "user":
            said = [block["transcript"] for block in blocks if block.get("type") == "speech" and "transcript" in block]
        elif message["role"] == "assistant" and transcripts == "none" and blocks:
            message["content"] = [block for block in blocks if block.get("type") != "transcript"]
        elif message["role"] == "assistant" and transcripts != "none" and said:
            if not any(block.get("type") == "transcript" for block in blocks):
                reply = blocks or [{"type": "text", "text": message["content"]}]
                message["content"] = [{"type": "transcript", "text": " ".join(said)}, *reply]
    return messages


# ---------------------------------------------------------------- media to codes


def encode_blocks(blocks: list[dict], folder: str, processor: AnyGPTProcessor, settings: Settings) -> dict[int, str]:
    """Puts "codes" `[K, T]` into every block that brings none, by one pass of a codec for each modality.

    Returns:
        {id(block): problem in words} of the blocks that have no codes then.
    """
    problems: dict[int, str] = {}
    for spec in processor.specs:
        # The two directions of a medium share its block.
        own = {id(block): block for block in blocks if block["type"] == spec.name}
        values: dict[int, np.ndarray] = {}
        for key, block in own.items():
            try:
                if "codes" in block:
                    block["codes"] = ids_to_codes(spec, item_to_ids(spec, block.pop("codes")))
                else:
                    values[key] = load_medium(spec, block, folder, settings)
            # TypeError: a sampling rate that is no number; RecursionError: dicts in dicts in dicts.
            except (ValueError, OSError, TypeError, RecursionError) as error:
                problems[key] = str(error)
        if values:
            codes = codec_io.encode(processor.codec(spec.name), list(values.values()))
            for key, item in zip(values, codes, strict=True):
                own[key]["codes"] = item[: spec.num_codebooks, : max_frames(spec)]
    return problems


def load_medium(spec: Modality, block: dict, folder: str, settings: Settings) -> np.ndarray:
    """The medium of a block as its codec takes it, `[samples]` or `[3, S, S]`."""
    item, rate = find_source(block, spec.name), block.get("sampling_rate")
    if isinstance(item, dict):  # datasets' {"array", "sampling_rate"} or {"bytes", "path"} inside a block
        return load_medium(spec, item, folder, settings)
    if isinstance(item, str) and not item.startswith((*FETCHED, INLINE)):
        item = str(Path(folder) / item)
    if spec.sampling_rate is None:
        return image_to_array(load_image(item), spec.image_size)
    return load_sound(spec, item, rate, settings)


def load_sound(spec: Modality, item: Any, rate: float | None, settings: Settings) -> np.ndarray:
    """float32 `[samples]` at the codec's rate, cut and padded as the settings say."""
    limit = spec.max_seconds or MAX_SECONDS
    whole = MAX_SECONDS if spec.name in settings.cut else limit + SLACK_SECONDS
    samples = load_audio(item, spec.sampling_rate, rate, whole)[: round(limit * spec.sampling_rate)]
    step = round(settings.pad_seconds * spec.sampling_rate)
    return np.pad(samples, (0, -len(samples) % step)) if step else samples


def give_voices(drafts: Iterable[Draft], specs: Sequence[Modality], settings: Settings) -> None:
    """Puts the beginning of another recording of the same speaker before every request for speech."""
    for spec in specs:
        if not spec.has_voice:
            continue
        recordings: dict[Any, dict[int, dict]] = {}  # of each speaker, each recording once
        for draft in drafts:
            for block in draft.media:
                if draft.task != "messages" and block["type"] == spec.name and "codes" in block:
                    recordings.setdefault(draft.speaker, {})[id(block)] = block
        for draft in drafts:
            if draft.task == f"text->{spec.name}":
                (own,) = draft.media
                others = [block for block in recordings.get(draft.speaker, {}).values() if block is not own]
                if others:
                    chosen = others[draw(settings.seed, draft.source, spec.name, "voice") % len(others)]
                    frames = max(1, round(settings.voice_seconds * spec.frame_rate))
                    voice = {"type": spec.name, "codes": chosen["codes"][:, :frames]}
                    draft.messages[0]["content"].insert(0, voice)


def max_frames(spec: Modality) -> int | None:
    """Frames of the longest item of a modality; None without a limit."""
    return None if spec.max_seconds is None else round(spec.max_seconds * spec.frame_rate)


# ---------------------------------------------------------------- conversations to ids


def cut_document(
    draft: Draft, processor: AnyGPTProcessor, settings: Settings
) -> list[tuple[str, list[int], list[int]]]:
    """Source, input_ids and labels of plain text as the backbone was trained on it, all of it learned; in pieces where
    it is longer than a row, each beginning with the last id of the one before."""
    ids, labels = encode_pieces([(draft.document, True)], text_only(processor.tokenizer))
    if len(ids) < 2:
        raise ValueError("Nothing to learn: the document is a single token.")
    starts = range(0, len(ids) - 1, settings.max_tokens - 1)
    pieces = [slice(start, start + settings.max_tokens) for start in starts]
    sources = [f"{draft.source}+{start}" for start in starts] if len(starts) > 1 else [draft.source]
    return [(source, ids[piece], labels[piece]) for source, piece in zip(sources, pieces, strict=True)]


def tokenise(messages: list[dict], processor: AnyGPTProcessor, settings: Settings) -> tuple[list[int], list[int]]:
    """input_ids and labels of a conversation whose blocks hold codes; ValueError if it is no row to learn from."""
    system, separator = processor.system_prompt, processor.turn_separator
    ids, labels = render(messages, processor.tokenizer, processor.specs, system=system, separator=separator)
    if len(ids) > settings.max_tokens:
        raise ValueError(f"Got {len(ids)} tokens, at most {settings.max_tokens} fit. Cut it, or raise --max-tokens.")
    if settings.loss == "all":
        labels = list(ids)
    if settings.transcripts == "forced":
        begin, end = processor.tokenizer.convert_tokens_to_ids([INSTRUCTION, RESPONSE])
        inside = False
        for place, token in enumerate(ids):
            inside = inside or token == begin
            if inside:
                labels[place] = IGNORED
            inside = inside and token != end
    if all(label == IGNORED for label in labels):
        raise ValueError("Nothing to learn: no message of the assistant.")
    return ids, labels
