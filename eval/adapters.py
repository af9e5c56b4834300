"""Public data sets as they lie on disk -> items to judge, in a fixed order.

    items = adapters.librispeech("LibriSpeech", "test-clean")

Each function names the file that is missing or wrong, in one line. Nothing is downloaded, decoded or changed here; the
layouts are those of the archives that the data sets are published in.
"""

import json
from csv import DictReader
from dataclasses import dataclass
from pathlib import Path

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")


@dataclass(frozen=True)
class Item:
    """One item of a data set.

    Args:
        id: unique and stable; sample lists name these.
        media: path of a picture or sound, or the bytes of its file.
        texts: transcript or caption (one), or reference captions (several).
        speaker: whose voice it is, where known.
    """

    id: str
    media: str | bytes
    texts: tuple[str, ...]
    speaker: str | None = None


def librispeech(root: str | Path, split: str = "test-clean") -> list[Item]:
    """LibriSpeech (Panayotov et al. 2015): `SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt`, a .flac for each line,
    and `SPEAKERS.TXT`, where it was kept: all its speakers of the split must be there.

    Args:
        root: the folder `LibriSpeech`, or the one it was unpacked into.
        split: test-clean, test-other, dev-clean, ...
    """
    root = Path(root)
    root = root / "LibriSpeech" if (root / "LibriSpeech").is_dir() else root
    folder = _folder(root / split, "LibriSpeech")
    if (root / "SPEAKERS.TXT").is_file():  # comes with every archive: ID | SEX | SUBSET | MINUTES | NAME
        for line in _lines(root / "SPEAKERS.TXT", "LibriSpeech"):
            speaker, _, subset = (f"{line}||".split("|"))[:3]
            if subset.strip() == split:
                _folder(folder / speaker.strip(), "LibriSpeech")
    items = []
    for chapter in sorted(path for path in folder.glob("*/*") if path.is_dir()):
        transcript = _file(chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt", "LibriSpeech")
        for number, line in enumerate(_lines(transcript, "LibriSpeech"), 1):
            name, _, text = line.partition(" ")
            if not text.strip():
                raise ValueError(f"LibriSpeech: line {number} of {transcript} is not 'ID TEXT': {line!r}.")
            sound = _file(chapter / f"{name}.flac", "LibriSpeech")
            items.append(Item(name, str(sound), (text.strip(),), chapter.parent.name))
    return _some(items, "LibriSpeech", folder / "SPEAKER" / "CHAPTER" / "SPEAKER-CHAPTER.trans.txt")


# Gaps of the published archive itself (torchaudio's VCTK_092 skips the same).
VCTK_WITHOUT_TEXT = ("p315",)
VCTK_WITHOUT_SECOND_MICROPHONE = ("p280",)
VCTK_WITH_LOST_RECORDINGS = ("p362",)  # some texts without a recording


def vctk(root: str | Path, microphone: str = "mic1") -> list[Item]:
    """VCTK 0.92 (Yamagishi et al. 2019): `wav48_silence_trimmed/p225/p225_001_mic1.flac`, `txt/p225/p225_001.txt` and
    `speaker-info.txt`, which lists the speakers.

    Left out is what the archive itself lacks: speaker p315 (no texts), p280 of mic2, and some utterances of p362.
    """
    if microphone not in ("mic1", "mic2"):
        raise ValueError(f"Got microphone {microphone!r}; VCTK 0.92 has mic1 and mic2.")
    root = Path(root)
    info = _file(root / "speaker-info.txt", "VCTK")
    sounds = _folder(root / "wav48_silence_trimmed", "VCTK")
    texts = _folder(root / "txt", "VCTK")
    left_out = VCTK_WITHOUT_TEXT + (VCTK_WITHOUT_SECOND_MICROPHONE if microphone == "mic2" else ())
    items = []
    for line in _lines(info, "VCTK")[1:]:  # the first names the columns
        speaker = line.split()[0]
        if speaker in left_out:
            continue
        recorded = {path.name for path in _folder(sounds / speaker, "VCTK").glob(f"*_{microphone}.flac")}
        for text in sorted(_folder(texts / speaker, "VCTK").glob("*.txt")):
            name = f"{text.stem}_{microphone}.flac"
            if name in recorded:
                items.append(Item(text.stem, str(sounds / speaker / name), (_text(text, "VCTK"),), speaker))
            elif speaker not in VCTK_WITH_LOST_RECORDINGS:
                _file(sounds / speaker / name, "VCTK")
    return _some(items, "VCTK", sounds / "p225" / f"p225_001_{microphone}.flac")


COCO_SPLITS = ("train", "restval", "val", "test", "val2014")


def coco(root: str | Path, split: str = "test") -> list[Item]:
    """COCO 2014 with Karpathy's split (Karpathy and Fei-Fei 2015): `dataset_coco.json`, `val2014/`, `train2014/`.

    Args:
        root: folder with all of them.
        split: "test" and "val" have 5,000 pictures each; "val2014" is every picture of that folder.
    """
    if split not in COCO_SPLITS:
        raise ValueError(f"Got split {split!r}; COCO has {', '.join(COCO_SPLITS)}.")
    root = Path(root)
    file = _file(root / "dataset_coco.json", "COCO")
    items = []
    try:
        for row in json.loads(file.read_text(encoding="utf-8"))["images"]:
            if split in (row["split"], row["filepath"]):
                texts = tuple(sentence["raw"].strip() for sentence in row["sentences"])
                items.append(Item(str(row["cocoid"]), str(root / row["filepath"] / row["filename"]), texts))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"COCO: {file} is not Karpathy's list of images: {error!r}.") from None
    for item in items:
        _file(Path(item.media), "COCO")
    return _some(items, "COCO", file)


MUSICCAPS_COLUMNS = ("ytid", "start_s", "end_s", "caption")


def musiccaps(csv: str | Path, audio: str | Path, allow_missing: bool = False) -> list[Item]:
    """MusicCaps (Agostinelli et al. 2023): `musiccaps-public.csv`, and a folder of clips that the user has cut.

    Clips are called `YTID.wav` or `[YTID]-[START-END].wav` (or .flac, .mp3, .ogg), as the usual scripts write them;
    they are the 10 s of the table.

    Args:
        allow_missing: leave out clips that are not there. Many videos are gone: report how many items were judged.
    """
    table, audio = _file(Path(csv), "MusicCaps"), _folder(Path(audio), "MusicCaps")
    clips = {path.stem: path for path in sorted(audio.iterdir()) if path.suffix.lower() in AUDIO_SUFFIXES}
    with open(table, encoding="utf-8-sig", newline="") as file:  # a spreadsheet may have saved it with a mark
        reader = DictReader(file)
        absent = [name for name in MUSICCAPS_COLUMNS if name not in (reader.fieldnames or ())]
        if absent:
            raise ValueError(f"MusicCaps: {table} has no column {', '.join(absent)}; give musiccaps-public.csv.")
        rows = list(reader)
    for number, row in enumerate(rows, 1):
        if not all(row[name] for name in MUSICCAPS_COLUMNS):
            raise ValueError(f"MusicCaps: row {number} of {table} lacks some of {', '.join(MUSICCAPS_COLUMNS)}.")
    items, missing = [], []
    for row in rows:
        names = (row["ytid"], f"[{row['ytid']}]-[{row['start_s']}-{row['end_s']}]")
        clip = next((clips[name] for name in names if name in clips), None)
        if clip is None:
            missing.append(row["ytid"])
        else:
            items.append(Item(row["ytid"], str(clip), (row["caption"].strip(),)))
    if missing and not allow_missing:
        raise ValueError(
            f"MusicCaps: missing {audio / missing[0]}.wav and {len(missing) - 1} more of {len(rows)} clips. "
            "Add them, or pass allow_missing=True to leave them out."
        )
    return _some(items, "MusicCaps", audio / "YTID.wav")


def saved_dataset(
    folder: str | Path,
    media: str,
    text: str,
    id: str | None = None,
    speaker: str | None = None,
    split: str = "test",
) -> list[Item]:
    """A data set written by `datasets`' `save_to_disk`.

    Args:
        media, text, id, speaker: names of its columns. `media` holds paths, bytes, or `Audio`/`Image` cells (taken as
            files, not decoded); `text` one text or several. Without `id` it is the row's number.
        split: of a folder with several.
    """
    import datasets

    folder = _folder(Path(folder), "Data set")
    if (folder / "dataset_dict.json").exists():
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        if split not in splits:
            raise ValueError(f"Data set: {folder} has no split {split!r}; it has {', '.join(splits)}.")
        folder = folder / split
    _file(folder / "dataset_info.json", "Data set")
    data = datasets.load_from_disk(str(folder))
    absent = [name for name in (media, text, id, speaker) if name is not None and name not in data.features]
    if absent:
        raise ValueError(f"Data set: {folder} has no column {', '.join(absent)}; it has {', '.join(data.features)}.")
    if isinstance(data.features[media], (datasets.Audio, datasets.Image)):
        data = data.cast_column(media, type(data.features[media])(decode=False))  # decoding sound takes torchcodec
    items = []
    for number, row in enumerate(data):
        cell, texts = row[media], row[text]
        if cell is None or not texts:
            raise ValueError(
                f"Data set: row {number} of {folder} has no {media if cell is None else text}. Leave it out."
            )
        if isinstance(cell, dict):
            cell = cell["bytes"] if cell["bytes"] is not None else cell["path"]
        if isinstance(cell, str):
            cell = str(_file(Path(cell), "Data set"))
        texts = (texts,) if isinstance(texts, str) else tuple(texts)
        name, voice = (str(row[column]) if column else None for column in (id, speaker))
        items.append(Item(name or str(number), cell, texts, voice))
    return _some(items, "Data set", folder)


# ---------------------------------------------------------------- what has to be there


def _folder(path: Path, name: str) -> Path:
    if not path.is_dir():
        raise ValueError(f"{name}: missing folder {path}. Unpack the archive there, or give its folder.")
    return path


def _file(path: Path, name: str) -> Path:
    if not path.is_file():
        raise ValueError(f"{name}: missing {path}. Fetch or unpack it again.")
    return path


def _text(path: Path, name: str) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: {path} is not text in UTF-8: {error}.") from None
    if not text:
        raise ValueError(f"{name}: {path} is empty. Fetch or unpack it again.")
    return text


def _lines(path: Path, name: str) -> list[str]:
    return _text(path, name).splitlines()


def _some(items: list[Item], name: str, expected: Path) -> list[Item]:
    """The items, which must be some and have different ids."""
    if not items:
        raise ValueError(f"{name}: found no item; expected such as {expected}.")
    seen = set()
    for item in items:
        if item.id in seen:
            raise ValueError(f"{name}: the id {item.id!r} occurs twice under {expected.parent}. Remove one.")
        seen.add(item.id)
    return items
