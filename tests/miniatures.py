"""Miniatures of public data sets: a few items in the layout of the real archive.

    python tests/miniatures.py FOLDER        # librispeech/ vctk/ coco/ musiccaps/

Voices are tones, pictures are coloured blocks, texts are made up.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image


def librispeech(root: Path, utterances: int = 3) -> Path:
    """`root/LibriSpeech` with `SPEAKERS.TXT` and `test-clean/SPEAKER/CHAPTER/` of two speakers, three chapters."""
    texts = ("HE HOPED THERE WOULD BE STEW", "THE NIGHT WAS WARM", "SHE SANG")
    for speaker, chapter in ((1089, 134686), (1089, 134691), (121, 121726)):
        folder = root / "LibriSpeech" / "test-clean" / str(speaker) / str(chapter)
        names = [f"{speaker}-{chapter}-{i:04}" for i in range(utterances)]
        for i, name in enumerate(names):
            tone(folder / f"{name}.flac", speaker + i, 16_000)
        lines = [f"{name} {texts[i % len(texts)]}" for i, name in enumerate(names)]
        text(folder / f"{speaker}-{chapter}.trans.txt", *lines)
    listed = ("1089 | M | test-clean | 8.01 | Peter Bobbe", "121 | F | test-clean | 8.15 | Nikolle Doolin")
    other = "14 | F | train-clean-360 | 25.03 | Kristin LeMoine"
    text(root / "LibriSpeech" / "SPEAKERS.TXT", ";ID |SEX| SUBSET |MINUTES| NAME", *listed, other)
    return root / "LibriSpeech"


def vctk(root: Path, utterances: int = 3) -> Path:
    """VCTK 0.92 with its gaps: p280 without a second microphone, p315 without texts, p362 with a text too many."""
    header = "ID  AGE  GENDER  ACCENTS  REGION COMMENTS "
    speakers = ("p225", "p226", "p280", "p315", "p362")
    text(root / "speaker-info.txt", header, *(f"{name}  23  F    English    London" for name in speakers))
    for number, speaker in enumerate(speakers):
        for i in range(1, utterances + 1):
            for microphone in ("mic1",) if speaker == "p280" else ("mic1", "mic2"):
                name = f"{speaker}_{i:03}_{microphone}.flac"
                tone(root / "wav48_silence_trimmed" / speaker / name, 100 * number + i, 48_000)
            if speaker != "p315":
                text(root / "txt" / speaker / f"{speaker}_{i:03}.txt", f"Please call Stella, {speaker}, {i} times.")
    text(root / "txt" / "p362" / f"p362_{utterances + 1:03}.txt", "Nobody said this.")
    return root


def coco(root: Path, pictures: int = 2) -> Path:
    """`dataset_coco.json` with `pictures` of each split (restval's in val2014/, as in the real one)."""
    rows = []
    for split in ("train", "restval", "val", "test"):
        folder = "train2014" if split == "train" else "val2014"
        for _ in range(pictures):
            number = 391895 + len(rows)
            name = f"COCO_{folder}_{number:012}.jpg"
            picture(root / folder / name, number)
            sentences = [{"raw": f"Caption {i} of picture {number}. ", "imgid": len(rows)} for i in range(5)]
            row = {"filepath": folder, "filename": name, "imgid": len(rows), "split": split, "cocoid": number}
            rows.append(row | {"sentences": sentences})
    text(root / "dataset_coco.json", json.dumps({"dataset": "coco", "images": rows}))
    return root


def musiccaps(root: Path, clips: int = 3) -> tuple[Path, Path]:
    """(`musiccaps-public.csv`, folder of clips in both usual ways of naming)."""
    columns = ["ytid", "start_s", "end_s", "audioset_positive_labels", "aspect_list", "caption", "author_id"]
    columns += ["is_balanced_subset", "is_audioset_eval"]
    rows = [
        [
            f"-0vPFx-wRR{i}",
            30 + i,
            40 + i,
            "/m/025_jnm",
            "['tone']",
            f'A "low" tone, number {i}.\nIt hums.',
            4,
            "False",
            "True",
        ]
        for i in range(clips)
    ]
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "musiccaps-public.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    for i, row in enumerate(rows):
        name = row[0] if i % 2 else f"[{row[0]}]-[{row[1]}-{row[2]}]"
        tone(root / "audio" / f"{name}.wav", i, 44_100)
    return root / "musiccaps-public.csv", root / "audio"


def tone(path: Path, number: int, rate: int, seconds: float = 0.3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * (200 + number % 500) * time), rate)


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.RandomState(number % 2**31).randint(0, 256, (3, 4, 3)).astype(np.uint8)
    Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)).save(path)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    librispeech(folder / "librispeech")
    vctk(folder / "vctk")
    coco(folder / "coco")
    musiccaps(folder / "musiccaps")
