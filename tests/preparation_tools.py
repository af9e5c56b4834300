"""Small media, and the unit function with its arguments filled in, for tests of training rows."""

import io

from PIL import Image
from processing_tools import tone

from processing_anygpt import preparation
from processing_anygpt.conversation import IGNORED

MEDIA = ["image", "speech", "music"]


def sound(level: float = 0.3, seconds: float = 0.2) -> dict:
    return {"array": tone(seconds, 1600, level), "sampling_rate": 1600}


def grey(level: int = 100) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (level,) * 3).save(file, "PNG")
    return file.getvalue()


def prepare(processor, options, *records, folder="."):
    return preparation.prepare([(str(i), record) for i, record in enumerate(records)], str(folder), processor, options)


def learned(row) -> list[int]:
    return [label for label in row["labels"] if label != IGNORED]


def words(processor, ids) -> str:
    return processor.tokenizer.decode(ids)
