"""Each data adapter reads a miniature of the real layout, and says which file is missing when one is."""

import importlib.util
import json
import shutil
from pathlib import Path

import datasets
import miniatures
import pytest
import soundfile
from PIL import Image

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def adapters():
    """eval/adapters.py, a file beside scripts that is no package."""
    spec = importlib.util.spec_from_file_location("adapters", ROOT / "eval" / "adapters.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refusal(call) -> str:
    """The message of the ValueError, which is one line."""
    with pytest.raises(ValueError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- LibriSpeech


def test_librispeech_reads_every_utterance_with_its_speaker(adapters, tmp_path):
    root = miniatures.librispeech(tmp_path)
    items = adapters.librispeech(root, "test-clean")
    (root / "SPEAKERS.TXT").unlink()  # not everybody keeps it
    assert items == adapters.librispeech(tmp_path)  # the folder it was unpacked into does as well
    assert len(items) == 9
    first = items[0]
    assert (first.id, first.texts, first.speaker) == (
        "1089-134686-0000",
        ("HE HOPED THERE WOULD BE STEW",),
        "1089",
    )
    assert all(soundfile.info(item.media).samplerate == 16_000 and item.id in item.media for item in items)


@pytest.mark.parametrize(
    "lost",
    [
        "test-clean",
        "test-clean/121",
        "test-clean/121/121726/121-121726.trans.txt",
        "test-clean/1089/134691/1089-134691-0001.flac",
    ],
)
def test_librispeech_names_what_is_missing(adapters, tmp_path, lost):
    root = miniatures.librispeech(tmp_path)
    remove(root / lost)
    message = refusal(lambda: adapters.librispeech(root))
    assert str(root / lost) in message and "missing" in message


def test_librispeech_refuses_a_line_without_text(adapters, tmp_path):
    root = miniatures.librispeech(tmp_path)
    file = root / "test-clean/121/121726/121-121726.trans.txt"
    file.write_text("121-121726-0000 SHE SANG\n121-121726-0001\n")
    assert "line 2 of" in refusal(lambda: adapters.librispeech(root))


def test_librispeech_empty_split(adapters, tmp_path):
    (tmp_path / "dev-other").mkdir()
    assert "found no item" in refusal(lambda: adapters.librispeech(tmp_path, "dev-other"))


# ---------------------------------------------------------------- VCTK


def test_vctk_reads_all_but_the_gaps_of_the_archive(adapters, tmp_path):
    root = miniatures.vctk(tmp_path)
    items = adapters.vctk(root)
    assert [item.id for item in items] == [f"{s}_{i:03}" for s in ("p225", "p226", "p280", "p362") for i in (1, 2, 3)]
    assert items[3].speaker == "p226" and items[3].texts == ("Please call Stella, p226, 1 times.",)
    assert all(item.media.endswith(f"{item.id}_mic1.flac") and Path(item.media).exists() for item in items)
    assert {item.speaker for item in adapters.vctk(root, "mic2")} == {"p225", "p226", "p362"}


@pytest.mark.parametrize(
    "lost",
    [
        "speaker-info.txt",
        "txt",
        "wav48_silence_trimmed",
        "txt/p226",
        "wav48_silence_trimmed/p225",
        "wav48_silence_trimmed/p225/p225_002_mic1.flac",
    ],
)
def test_vctk_names_what_is_missing(adapters, tmp_path, lost):
    root = miniatures.vctk(tmp_path)
    remove(root / lost)
    message = refusal(lambda: adapters.vctk(root))
    assert str(root / lost) in message and "missing" in message


def test_vctk_knows_its_microphones(adapters, tmp_path):
    assert "'mic3'" in refusal(lambda: adapters.vctk(tmp_path, "mic3"))


# ---------------------------------------------------------------- COCO


def test_coco_reads_a_split_and_the_whole_validation_folder(adapters, tmp_path):
    root = miniatures.coco(tmp_path)
    items = adapters.coco(root, "test")
    assert [item.id for item in items] == ["391901", "391902"]
    assert items[0].texts == tuple(f"Caption {i} of picture 391901." for i in range(5))
    assert Image.open(items[0].media).size == (64, 48)
    assert len(adapters.coco(root, "val2014")) == 6 and len(adapters.coco(root, "train")) == 2


@pytest.mark.parametrize("lost", ["dataset_coco.json", "val2014/COCO_val2014_000000391902.jpg"])
def test_coco_names_what_is_missing(adapters, tmp_path, lost):
    root = miniatures.coco(tmp_path)
    remove(root / lost)
    message = refusal(lambda: adapters.coco(root))
    assert str(root / lost) in message and "missing" in message


def test_coco_refuses_another_json(adapters, tmp_path):
    root = miniatures.coco(tmp_path)
    (root / "dataset_coco.json").write_text(json.dumps({"images": [{"id": 1}]}))
    assert "dataset_coco.json is not Karpathy's" in refusal(lambda: adapters.coco(root))
    (root / "dataset_coco.json").write_text("{")
    assert "dataset_coco.json is not Karpathy's" in refusal(lambda: adapters.coco(root))
    assert "'testing'" in refusal(lambda: adapters.coco(root, "testing"))


# ---------------------------------------------------------------- MusicCaps


def test_musiccaps_finds_clips_of_both_names(adapters, tmp_path):
    items = adapters.musiccaps(*miniatures.musiccaps(tmp_path))
    assert [item.id for item in items] == ["-0vPFx-wRR0", "-0vPFx-wRR1", "-0vPFx-wRR2"]
    assert items[1].texts == ('A "low" tone, number 1.\nIt hums.',)
    assert [Path(item.media).name for item in items[:2]] == ["[-0vPFx-wRR0]-[30-40].wav", "-0vPFx-wRR1.wav"]


def test_musiccaps_may_come_from_a_spreadsheet(adapters, tmp_path):
    table, audio = miniatures.musiccaps(tmp_path)
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert len(adapters.musiccaps(table, audio)) == 3


def test_musiccaps_leaves_out_clips_only_if_told_to(adapters, tmp_path):
    table, audio = miniatures.musiccaps(tmp_path)
    (audio / "-0vPFx-wRR1.wav").unlink()
    message = refusal(lambda: adapters.musiccaps(table, audio))
    assert str(audio / "-0vPFx-wRR1.wav") in message and "allow_missing" in message
    assert [item.id for item in adapters.musiccaps(table, audio, allow_missing=True)] == ["-0vPFx-wRR0", "-0vPFx-wRR2"]


def test_musiccaps_names_what_is_missing(adapters, tmp_path):
    table, audio = miniatures.musiccaps(tmp_path)
    assert str(tmp_path / "other.csv") in refusal(lambda: adapters.musiccaps(tmp_path / "other.csv", audio))
    assert str(tmp_path / "clips") in refusal(lambda: adapters.musiccaps(table, tmp_path / "clips"))
    table.write_text("ytid,start_s,end_s,caption\nx,1\n")
    assert f"row 1 of {table} lacks some of ytid" in refusal(lambda: adapters.musiccaps(table, audio))
    table.write_text("id,caption\n1,hum\n")
    assert "no column ytid, start_s, end_s" in refusal(lambda: adapters.musiccaps(table, audio))


# ---------------------------------------------------------------- datasets


def test_saved_dataset_takes_files_as_they_are(adapters, tmp_path):
    miniatures.picture(tmp_path / "one.png", 1)
    file = (tmp_path / "one.png").read_bytes()
    cells = [{"bytes": file, "path": None}, {"bytes": None, "path": str(tmp_path / "one.png")}]
    rows = {"picture": cells, "said": [["a", "b"], ["c"]], "who": ["ann", "bob"], "name": ["x", "y"]}
    data = datasets.Dataset.from_dict(rows).cast_column("picture", datasets.Image(decode=False))
    data.cast_column("picture", datasets.Image()).save_to_disk(str(tmp_path / "single"))
    first, second = adapters.saved_dataset(tmp_path / "single", "picture", "said", id="name", speaker="who")
    assert (first.id, first.media, first.texts, first.speaker) == ("x", file, ("a", "b"), "ann")
    assert second.media == file  # `save_to_disk` takes pictures in

    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "several"))
    assert [item.id for item in adapters.saved_dataset(tmp_path / "several", "picture", "said", split="train")] == [
        "0",
        "1",
    ]
    assert "no split 'test'; it has train" in refusal(
        lambda: adapters.saved_dataset(tmp_path / "several", "picture", "said")
    )
    message = refusal(lambda: adapters.saved_dataset(tmp_path / "single", "picture", "caption"))
    assert "no column caption; it has picture, said, who, name" in message


def test_saved_dataset_names_what_is_missing(adapters, tmp_path):
    miniatures.tone(tmp_path / "a.wav", 1, 16_000)
    rows = {"sound": [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")], "text": ["a", "b"]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "data"))
    assert str(tmp_path / "b.wav") in refusal(lambda: adapters.saved_dataset(tmp_path / "data", "sound", "text"))
    assert str(tmp_path / "gone") in refusal(lambda: adapters.saved_dataset(tmp_path / "gone", "sound", "text"))
    (tmp_path / "data" / "dataset_info.json").unlink()
    assert "dataset_info.json" in refusal(lambda: adapters.saved_dataset(tmp_path / "data", "sound", "text"))


@pytest.mark.parametrize("row, lost", [((None, "a"), "sound"), ((b"x", None), "text"), ((b"x", ""), "text")])
def test_saved_dataset_names_what_is_empty(adapters, tmp_path, row, lost):
    rows = {"sound": [b"x", row[0]], "text": ["a", row[1]]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "data"))
    message = refusal(lambda: adapters.saved_dataset(tmp_path / "data", "sound", "text"))
    assert f"row 1 of {tmp_path / 'data'} has no {lost}" in message


def test_equal_ids_are_refused(adapters, tmp_path):
    rows = {"file": [b"1", b"2"], "text": ["a", "b"], "id": ["x", "x"]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "data"))
    assert "'x' occurs twice" in refusal(lambda: adapters.saved_dataset(tmp_path / "data", "file", "text", id="id"))


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
