"""What a model wrote, as typed parts: text, pictures, sound, each with `.save(path)`.

`parse` cuts generated ids into segments (no codec needed); a codec turns the segments' codes into parts.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .vocabulary import ASSISTANT, END_OF_HUMAN, END_OF_REPLY, HUMAN, INSTRUCTION, RESPONSE, code_ids, ids_to_codes


@dataclass
class Segment:
    """A stretch of output in one modality: `text` for "text" and "transcript", else `codes`."""

    modality: str
    text: str | None = None
    codes: np.ndarray | None = None  # [K, T] int64, whole frames only
    problem: str | None = None  # why the codes are not a whole item, in words


class Part:
    """Base of the typed parts. `modality` names the row of the modality table, or "text", "transcript"."""

    modality: str

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the part to `path`, by a temporary file that is renamed; returns the path. Parents are created."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix comes last: it tells Pillow and libsndfile which format to write.
        temporary = path.with_name(f".{os.getpid()}-{path.stem}{path.suffix}")
        try:
            self._write(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def _write(self, path: Path) -> None:
        raise NotImplementedError


class TextPart(Part):
    modality = "text"

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text!r})"

    def _write(self, path: Path) -> None:
        path.write_text(self.text + "\n", encoding="utf-8")


class TranscriptPart(TextPart):
    """What the model heard in a spoken instruction, before it answers."""

    modality = "transcript"


class ImagePart(Part):
    """A picture: `image` is a PIL image in RGB."""

    def __init__(self, image: Image.Image, codes: np.ndarray | None = None, modality: str = "image"):
        self.image = image
        self.codes = codes
        self.modality = modality

    def __repr__(self) -> str:
        return f"ImagePart({self.image.width}x{self.image.height} px)"

    def _write(self, path: Path) -> None:
        if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:  # some are only read
            raise ValueError(f"Can't save a picture as {path.suffix or 'a file without suffix'!r}. Use .png or .jpg.")
        self.image.save(path)


class AudioPart(Part):
    """Sound: `waveform` float32 `[T]` in [-1, 1] at `sampling_rate` Hz, mono."""

    def __init__(
        self, waveform: np.ndarray, sampling_rate: int, codes: np.ndarray | None = None, modality: str = "audio"
    ):
        self.waveform = waveform
        self.sampling_rate = sampling_rate
        self.codes = codes
        self.modality = modality

    @property
    def seconds(self) -> float:
        return len(self.waveform) / self.sampling_rate

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.seconds:.2f} s at {self.sampling_rate} Hz)"

    def _write(self, path: Path) -> None:
        import soundfile  # a machine that only trains has none

        kind = path.suffix[1:].upper()
        if kind not in soundfile.available_formats() or soundfile.default_subtype(kind) is None:  # RAW has no header
            raise ValueError(
                f"Can't save sound as {path.suffix or 'a file without suffix'!r}. Use .wav, .flac or .ogg."
            )
        soundfile.write(path, np.clip(self.waveform, -1, 1), self.sampling_rate)


class SpeechPart(AudioPart):
    def __init__(self, waveform: np.ndarray, sampling_rate: int, codes: np.ndarray | None = None):
        super().__init__(waveform, sampling_rate, codes, "speech")


class MusicPart(AudioPart):
    def __init__(self, waveform: np.ndarray, sampling_rate: int, codes: np.ndarray | None = None):
        super().__init__(waveform, sampling_rate, codes, "music")


class UnfinishedPart(Part):
    """An item that ended too early to be decoded, with the codes there are and the reason in words."""

    def __init__(self, modality: str, codes: np.ndarray, problem: str):
        self.modality = modality
        self.codes = codes
        self.problem = problem

    def __repr__(self) -> str:
        return f"UnfinishedPart({self.modality}: {self.problem})"

    def _write(self, path: Path) -> None:
        raise ValueError(f"Can't save an unfinished {self.modality} ({self.problem}). Allow more new tokens.")


def parse(ids: Sequence[int], tokenizer: Any, modalities: Sequence[Any]) -> list[Segment]:
    """Cuts the ids of one reply into segments, up to the end of the reply.

    Tolerant of what an interrupted or unconstrained model leaves: an unfinished frame is dropped, an item without an
    end token counts as ended, one without a start token as begun, an item with too few or too many codes carries a
    `problem`, stray markers are skipped. Text is stripped of the spaces that separate blocks.
    """
    markers = (HUMAN, ASSISTANT, END_OF_HUMAN, END_OF_REPLY, INSTRUCTION, RESPONSE)
    ids_of = dict(zip(markers, tokenizer.convert_tokens_to_ids(list(markers)), strict=True))
    ends = {ids_of[END_OF_REPLY], tokenizer.eos_token_id}
    skipped = {ids_of[HUMAN], ids_of[ASSISTANT], ids_of[END_OF_HUMAN]}
    starts = {modality.start_token_id: modality for modality in modalities}
    skipped |= {modality.end_token_id for modality in modalities}
    code_ranges = [code_ids(modality) for modality in modalities]

    segments: list[Segment] = []
    text_ids: list[int] = []
    kind = "text"

    def end_text() -> None:
        text = tokenizer.decode(text_ids, skip_special_tokens=True).strip()
        if text:
            segments.append(Segment(kind, text=text))
        text_ids.clear()

    ids = [int(i) for i in ids]
    position = 0
    while position < len(ids) and ids[position] not in ends:
        token = ids[position]
        position += 1
        # A prompt may end with a start token: then the reply begins inside the item.
        inside = [m for m, codes in zip(modalities, code_ranges, strict=True) if token in codes]
        if token in starts or inside:
            end_text()
            modality = inside[0] if inside else starts[token]
            first = position - len(inside)
            while position < len(ids) and ids[position] in code_ids(modality):
                position += 1
            segments.append(_media_segment(modality, ids[first:position]))
        elif token in (ids_of[INSTRUCTION], ids_of[RESPONSE]):
            end_text()
            kind = "transcript" if token == ids_of[INSTRUCTION] else "text"
        elif token not in skipped:
            text_ids.append(token)
    end_text()
    return segments


def join_items(segments: list[Segment], modality: str) -> list[Segment]:
    """The items of `modality` as one, with all their codes, at the end; before it all the text, in one.

    For speech that comes word by word between the words it says. Less than two items are left as they are.
    """
    pieces = [s for s in segments if s.modality == modality and s.problem is None]
    if len(pieces) < 2:
        return segments
    texts = [s.text for s in segments if s.modality == "text"]
    item = Segment(modality, codes=np.concatenate([s.codes for s in pieces], axis=1))
    others = [s for s in segments if s.modality != "text" and (s.modality != modality or s.problem)]
    return [*others, *([Segment("text", text=" ".join(texts))] if texts else []), item]


def _media_segment(modality: Any, ids: list[int]) -> Segment:
    codes = ids_to_codes(modality, ids)
    problem = None
    if modality.codes_per_item is not None and len(ids) != modality.codes_per_item:
        problem = f"{len(ids)} of {modality.codes_per_item} codes"
    elif codes.shape[1] == 0:
        problem = "no whole frame"
    return Segment(modality.name, codes=codes, problem=problem)
