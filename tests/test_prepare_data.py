"""Raw media to training rows: what is in them, each there exactly once, and what happens to everything else."""

import importlib.util
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from processing_tools import make_processor, tone

from processing_anygpt import preparation, rows, sources
from processing_anygpt.conversation import IGNORED
from processing_anygpt.instructions import choose, load_instructions
from processing_anygpt.parts import parse

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
MEDIA = ["image", "speech", "music"]


def script(name: str):
    """A script of train/ as a module; train is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "train" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fake():
    """A processor with exact codecs: sound at 1600 Hz, speech of 50 codes a second, music of 2 x 25."""
    return make_processor()


@pytest.fixture(scope="module")
def defaults():
    return preparation.Settings(max_tokens=1000, instructions=load_instructions(MEDIA))


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


# ---------------------------------------------------------------- instructions


def test_every_direction_has_forty_instructions():
    for direction, sentences in load_instructions(MEDIA).items():
        assert len({sentence.lower() for sentence in sentences}) == len(sentences) >= 40, direction
        assert all(s.count("{text}") == direction.startswith("text->") and "{m" not in s for s in sentences)


def test_instructions_are_drawn_evenly_and_always_the_same(defaults):
    sentences = defaults.instructions
    drawn = Counter(choose(sentences, "text->image", 0, f"row {i}") for i in range(4400))
    assert set(drawn) == set(sentences["text->image"]) and max(drawn.values()) < 200  # of 100 on average
    # Other processes, machines and releases have to draw the same, or a resumed run would differ.
    assert choose({"text->image": list("abcdefgh")}, "text->image", 0, "row 0") == "e"
    assert choose({"text->image": list("abcdefgh")}, "text->image", 1, "row 0") == "h"


def test_instructions_of_ones_own(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text('text->speech: ["Sag: {text}"]\nany->text: ["Was ist dieses {modality}?"]\n')
    own = load_instructions(["speech", "smell"], file)
    assert own["text->speech"] == ["Sag: {text}"] and own["smell->text"] == ["Was ist dieses smell?"]
    assert len(own["speech->text"]) >= 40 and own["text->smell"]
    for content, message in [
        ("text->video: ['a {text}']", "Unknown direction 'text->video'"),
        ("text->speech: ['Say it']", "{text} exactly once"),
        ("speech->text: ['Write {text}']", "no {text}"),
        ("speech->text: Write", "a list of at least one"),
        ("speech->text: [Write: down]", "quote those with a colon"),
        ("- Write", "no instructions"),
        ("speech->text: [", "Can't read"),
    ]:
        file.write_text(content)
        with pytest.raises(ValueError) as error:
            load_instructions(["speech"], file)
        assert message in str(error.value)


# ---------------------------------------------------------------- rows


def test_a_pair_becomes_a_row_for_each_direction(fake, defaults):
    made, rejects = prepare(fake, defaults, {"text": " a dog ", "speech": sound()})
    assert rejects == [] and [row["task"] for row in made] == ["speech->text", "text->speech"]
    codes = fake.encode_media("speech", [sound()])[0]
    hear, speak = made
    assert words(fake, learned(hear)) == " a dog<eos>"
    (part,) = [part for part in parse(hear["input_ids"], fake.tokenizer, fake.specs) if part.modality == "speech"]
    assert np.array_equal(part.codes, codes)
    (part,) = parse(learned(speak), fake.tokenizer, fake.specs)
    assert np.array_equal(part.codes, codes)
    text = words(fake, speak["input_ids"])
    sentence = choose(defaults.instructions, "text->speech", 0, "0").replace("{text}", "a dog")
    assert text.startswith(f"[Human]: {sentence}<eoh>\n[MMGPT]: <sosp>") and text.endswith("<eosp><eos>")
    assert speak["modality_tokens"]["speech"] == codes.size + 2 and speak["modality_tokens"]["music"] == 0


@settings(max_examples=60, deadline=None)
@given(text=st.text() | st.lists(st.sampled_from(["<eoh>", "[MMGPT]", "<🗣️5>", "a", " ", "<eos>", "\n"])).map("".join))
def test_any_text_is_learned_as_it_is_or_rejected(fake, defaults, text):
    made, rejects = prepare(fake, defaults, {"text": text, "music": sound()})
    if not text.strip():
        assert not made and "No text" in rejects[0]["reason"]
        return
    hear, play = made
    assert words(fake, learned(hear)) == f" {text.strip()}<eos>"
    end = fake.tokenizer.convert_tokens_to_ids("<eos>")
    for row in made:
        assert row["input_ids"].count(end) == 1 and row["input_ids"][-1] == end
        assert all(label in (IGNORED, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))
        assert row["length"] == len(row["input_ids"]) == sum(row["modality_tokens"].values())
        assert row["modality_tokens"]["music"] == 2 * 5 + 2


def test_directions(fake, defaults):
    records = [{"text": "t", "speech": sound(0.2), "image": {"bytes": grey(), "path": "no such file.png"}}] * 60
    for directions, wanted in (
        ("x-to-text", {"speech->text": 60, "image->text": 60}),
        ("text-to-x", {"text->speech": 60, "text->image": 60}),
        ("both", {"speech->text": 60, "image->text": 60, "text->speech": 60, "text->image": 60}),
    ):
        made, _ = prepare(fake, replace(defaults, directions=directions), *records)
        assert Counter(row["task"] for row in made) == wanted
    drawn, _ = prepare(fake, replace(defaults, directions="random"), *records)
    tasks = Counter(row["task"] for row in drawn)
    assert tasks["speech->text"] + tasks["text->speech"] == 60 == tasks["image->text"] + tasks["text->image"]
    assert min(tasks.values()) > 15
    again, _ = prepare(fake, replace(defaults, directions="random", seed=1), *records)
    assert [row["task"] for row in again] != [row["task"] for row in drawn]


def test_the_loss_may_be_on_every_token(fake, defaults):
    made, _ = prepare(fake, replace(defaults, loss="all"), {"text": "a dog", "image": grey()})
    assert len(made) == 2 and all(row["labels"] == row["input_ids"] for row in made)


CONVERSATION = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "speech", "audio": sound(), "transcript": "draw a dog", "text": None}]},
    {"role": "assistant", "content": [{"type": "text", "text": "here"}, {"type": "image", "bytes": grey()}]},
    {"role": "user", "content": "thanks"},
    {"role": "assistant", "content": "bye"},
]


@pytest.mark.parametrize("transcripts", preparation.TRANSCRIPTS)
def test_of_a_conversation_the_replies_are_learned(fake, defaults, transcripts):
    made, rejects = prepare(fake, replace(defaults, transcripts=transcripts), {"messages": CONVERSATION})
    assert rejects == []
    spec = fake.specs[0]
    own = {spec.start_token_id, spec.end_token_id, *range(spec.first_code_id, spec.first_code_id + spec.codebook_size)}
    picture = words(fake, [token for token in made[0]["input_ids"] if token in own])
    reply = f" here {picture}<eos> bye<eos>"
    said = "<-Ins-> draw a dog\n <-Res->"
    expected = {"free": f" {said}{reply}", "forced": f" {reply}", "none": reply}[transcripts]
    assert words(fake, learned(made[0])) == expected
    assert (said in words(fake, made[0]["input_ids"])) == (transcripts != "none")
    assert words(fake, made[0]["input_ids"]).startswith("be brief\n[Human]: <sosp>")
    assert made[0]["task"] == "messages" and made[0]["modality_tokens"]["image"] == 6


@pytest.mark.parametrize(
    "record, reason",
    [
        ({"text": "t"}, "No medium beside the text: need one of image, speech, music"),
        ({"speech": sound()}, "No text: need a string in 'text'"),
        ({"text": 5, "speech": sound()}, "No text"),
        ({"text": "t", "speech": "gone.wav"}, "No file"),
        ({"text": "t", "speech": b"RIFF junk"}, "Can't read 9 bytes as audio"),
        ({"text": "t", "image": b"\x89PNG junk"}, "Can't read"),
        ({"text": "t", "image": grey()[:50]}, "truncated or damaged"),
        ({"text": "t", "speech": [0.1, 0.2]}, "without its sampling rate"),
        ({"text": "t", "speech": {"array": [float("nan")], "sampling_rate": 1600}}, "NaN"),
        ({"text": "t", "speech": {"array": [0.1] * 99, "sampling_rate": "fast"}}, "not supported"),
        ({"text": "t", "speech": {"name": "x"}}, "Got speech with ['name', 'type'], need one of bytes, array"),
        ({"text": "t", "speech": "http://localhost/x.wav"}, "not fetched"),
        ({"text": "t " * 1000, "speech": sound()}, "tokens, at most 1000 fit"),
        ({"text": "\ud800", "speech": sound()}, "surrogates"),
        ({"messages": "[{]"}, "Expecting"),
        ({"messages": []}, "without messages"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "Got role 'bot'"),
        ({"messages": [{"role": "user", "content": "x"}]}, "Nothing to learn"),
        ({"messages": [{"role": "assistant", "content": None}]}, "Got content of type NoneType"),
        ({"messages": [{"role": "assistant", "content": [{"type": "video", "path": "x"}]}]}, "Unknown block type"),
        ({"messages": [{"role": "assistant", "content": [{"type": "image", "codes": [1, 2]}]}]}, "need exactly 4"),
        ({"messages": [{"role": "assistant", "content": [{"type": "text", "text": 3}]}]}, "Got text of type int"),
        (ValueError("Not valid JSON: x"), "Not valid JSON"),
    ],
)
def test_a_bad_row_is_rejected_alone_and_says_why(fake, defaults, record, reason):
    good = {"text": "t", "image": grey()}
    made, rejects = prepare(fake, replace(defaults, directions="x-to-text"), good, record, good)
    assert [row["source"] for row in made] == ["0", "2"]
    (bad,) = rejects
    assert bad["source"] == "1" and reason in bad["reason"] and "\n" not in bad["reason"]


def test_a_bad_medium_leaves_the_others_of_its_row(fake, defaults):
    made, rejects = prepare(fake, defaults, {"text": "t", "image": b"junk", "speech": sound()})
    assert [row["task"] for row in made] == ["speech->text", "text->speech"]
    assert [bad["task"] for bad in rejects] == ["image->text", "text->image"]


def test_longer_sound_is_rejected_or_cut_and_padding_makes_batches(defaults):
    processor = make_processor()
    music = next(spec for spec in processor.specs if spec.name == "music")
    music.max_seconds = 0.4  # 10 frames
    records = [{"text": "t", "music": sound(seconds=seconds)} for seconds in (0.2, 0.24, 0.41, 2.0)]
    options = replace(defaults, directions="text-to-x")
    made, rejects = prepare(processor, options, *records)
    # 0.41 s is 0.4 s for whoever wrote the file.
    assert [row["modality_tokens"]["music"] - 2 for row in made] == [2 * 5, 2 * 6, 2 * 10]
    assert [bad["source"] for bad in rejects] == ["3"] and "2 s of audio" in rejects[0]["reason"]
    made, rejects = prepare(processor, replace(options, cut=("music",)), *records)
    assert [row["modality_tokens"]["music"] - 2 for row in made] == [2 * 5, 2 * 6, 2 * 10, 2 * 10] and not rejects
    batches = processor.codec("music").batches
    batches.clear()
    made, _ = prepare(processor, replace(options, pad_seconds=0.3), *records[:2])
    assert batches == [(2, 480)] and {row["modality_tokens"]["music"] for row in made} == {2 * 8 + 2}


# ---------------------------------------------------------------- sources


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> dict[str, Path]:
    """The same seven pairs of text and sound or picture in every form that is read."""
    root = tmp_path_factory.mktemp("collection")
    folder = root / "folder"
    for name in ("speech", "music", "pictures"):
        (folder / name).mkdir(parents=True)
    pairs = []
    for i in range(7):
        kind = ("speech", "music", "image")[i % 3]
        place = "pictures" if kind == "image" else kind
        path = folder / place / f"{i}.{'png' if kind == 'image' else 'wav'}"
        if kind == "image":
            path.write_bytes(grey(30 * i))
        else:
            soundfile.write(path, tone(0.1 + 0.02 * i, 1600, 0.1 * i), 1600, subtype="FLOAT")
        path.with_suffix(".txt").write_text(f"number {i}", encoding="utf-8")
        pairs.append((kind, path, f"number {i}"))
    (folder / "notes.md").write_text("no data")
    (folder / "only_words.txt").write_text("no medium")
    with open(root / "list.jsonl", "w") as file:
        file.writelines(
            json.dumps({"text": t, kind: str(path.relative_to(root))}) + "\n\n"[:1] for kind, path, t in pairs
        )
    table = [
        {"text": t, **dict.fromkeys(MEDIA), kind: {"bytes": path.read_bytes(), "path": "x"}} for kind, path, t in pairs
    ]
    binary = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"text": pa.string(), **dict.fromkeys(MEDIA, binary)})
    pq.write_table(pa.Table.from_pylist(table, schema), root / "list.parquet", row_group_size=5)
    data = datasets.Dataset(pa.Table.from_pylist(table, schema))
    for column, feature in (("image", datasets.Image()), ("speech", datasets.Audio()), ("music", datasets.Audio())):
        data = data.cast_column(column, feature)
    data.save_to_disk(root / "saved")
    with tarfile.open(root / "web.tar", "w") as tar:
        for i, (kind, path, text) in enumerate(pairs):
            suffix = f".{kind}{path.suffix}" if kind == "music" else path.suffix
            fields = {".json": json.dumps({"text": text}).encode(), suffix: path.read_bytes(), ".cls": b"0"}
            for suffix, content in fields.items():
                info = tarfile.TarInfo(f"deep/{i:03d}{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    forms = ("folder", "list.jsonl", "list.parquet", "saved", "web.tar")
    return {form: root / form for form in forms}


NAMES = sources.Names(MEDIA, "speech", "image")


def read_all(path: Path, rows_per_unit: int) -> list[tuple[str, dict]]:
    units = sources.plan([str(path)], rows_per_unit, NAMES, "train")
    for unit in units:
        json.dumps(unit)
        assert unit["count"] <= rows_per_unit
    return [item for unit in units for item in sources.read(unit)]


@pytest.mark.parametrize("form", ["folder", "list.jsonl", "list.parquet", "saved", "web.tar"])
def test_all_forms_of_data_give_the_same_rows(collection, fake, defaults, form):
    path = collection[form]
    records = read_all(path, 3)
    folder = path if form == "folder" else path.parent
    made, rejects = preparation.prepare(records, str(folder), fake, replace(defaults, directions="x-to-text"))
    assert rejects == [] and len(made) == 7 == len({row["source"] for row in made})
    expected = read_all(collection["list.jsonl"], 100)
    wanted, _ = preparation.prepare(expected, str(path.parent), fake, replace(defaults, directions="x-to-text"))

    def content(row):  # the instruction depends on the source's name
        parts = parse(row["input_ids"], fake.tokenizer, fake.specs)
        return words(fake, learned(row)), [part.codes.tolist() for part in parts if part.codes is not None]

    assert sorted(map(content, made)) == sorted(map(content, wanted))


@pytest.mark.parametrize("form", ["folder", "list.jsonl", "list.parquet", "saved", "web.tar"])
def test_units_of_any_size_hold_every_row_once_and_in_order(collection, form):
    whole = read_all(collection[form], 100)
    assert len(whole) == 7
    for size in (1, 2, 5, 7):
        assert read_all(collection[form], size) == whole


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("gone.jsonl", None, "No such input"),
        ("table.csv", b"a,b", "need .jsonl, .parquet or (unpacked) .tar"),
        ("empty.jsonl", b"", "Got no rows"),
        ("bad.parquet", b"PAR1 junk", "Can't read"),
        ("bad.tar", b"junk" * 200, "Can't read"),
        ("hf:/no/such/folder", None, "Can't load the dataset"),
    ],
)
def test_data_that_are_none(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        sources.plan([name if name.startswith("hf:") else str(path)], 10, NAMES, "train")
    assert message in str(error.value)


def test_lines_that_are_no_records(tmp_path):
    (tmp_path / "list.jsonl").write_bytes(b'{"text": "a"}\n{broken\n\n[1]\n\xff\n{"text": "b"}')
    found = read_all(tmp_path / "list.jsonl", 2)
    assert [source for source, _ in found] == [f"list.jsonl:{row}" for row in (0, 1, 3, 4, 5)]
    assert [isinstance(record, ValueError) for _, record in found] == [False, True, True, True, False]


# ---------------------------------------------------------------- folders of rows


FACTS = {"settings": {"seed": 0}, "modalities": MEDIA, "input": "x", "units": 2}


def some_rows(source: str) -> list[dict]:
    counts = {"text": 2, "image": 0, "speech": 1, "music": 0}
    row = {"input_ids": [1, 2, 3], "labels": [IGNORED, 2, 3], "length": 3, "modality_tokens": counts}
    return [row | {"task": "speech->text", "source": source}]


def test_rows_come_back_as_they_were(tmp_path):
    out = tmp_path / "rows"
    assert rows.begin(out, FACTS) == [0, 1]
    bad = {"source": "b", "task": None, "reason": "größer ✗"}
    rows.write_shard(out / rows.shard_name(1), [], [bad], MEDIA)
    with pytest.raises(ValueError, match="not finished"):
        rows.read_table(out)
    assert rows.begin(out, FACTS) == [0]
    rows.write_shard(out / rows.shard_name(0), some_rows("a"), [], MEDIA)
    manifest = rows.finish(out, FACTS)
    assert rows.begin(out, FACTS) == [] and rows.read_manifest(out) == manifest
    assert rows.read_table(out).to_pylist() == some_rows("a")
    assert rows.read_table(out, ["labels"]).to_pylist() == [{"labels": [IGNORED, 2, 3]}]
    assert [json.loads(line) for line in open(out / "rejects.jsonl", encoding="utf-8")] == [bad]
    assert manifest["rows"] == manifest["rejected"] == 1 and manifest["learned_tokens"] == 2
    assert manifest["modality_tokens"] == {"text": 2, "speech": 1} and manifest["tasks"] == {"speech->text": 1}
    loaded = datasets.Dataset(rows.read_table(out))  # as the trainers take it
    assert loaded[0]["input_ids"] == [1, 2, 3]
    with pytest.raises(ValueError, match="no column 'ids'"):
        rows.read_table(out, ["ids"])
    (out / rows.shard_name(0)).unlink()
    with pytest.raises(ValueError, match="lacks part-000000"):
        rows.read_table(out)


def test_other_settings_don_t_mix_with_what_is_there(tmp_path):
    rows.begin(tmp_path / "rows", FACTS)
    with pytest.raises(ValueError, match=r"begun with another seed \(0, now 1\)"):
        rows.begin(tmp_path / "rows", FACTS | {"settings": {"seed": 1}})
    with pytest.raises(ValueError, match="begun with another input"):
        rows.begin(tmp_path / "rows", FACTS | {"input": "y"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(ValueError, match="not empty"):
        rows.begin(tmp_path / "mine", FACTS)


def test_a_full_disk_leaves_no_half_shard(tmp_path, monkeypatch):
    def write(table, path, **options):
        path.write_bytes(b"PAR1 half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rows.pq, "write_table", write)
    with pytest.raises(OSError):
        rows.write_shard(tmp_path / rows.shard_name(0), some_rows("a"), [], MEDIA)
    assert list(tmp_path.iterdir()) == []


def test_rows_of_another_vocabulary_are_refused(fake):
    mine = {"tokenizer": rows.vocabulary_fingerprint(fake.tokenizer)}
    rows.check_vocabulary(mine, make_processor().tokenizer)
    other = make_processor().tokenizer
    other.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="another vocabulary"):
        rows.check_vocabulary(mine, other)


# ---------------------------------------------------------------- the script


@pytest.fixture(scope="module")
def manifest_file(tmp_path_factory) -> Path:
    """Recordings, pictures and a tune of examples/, a bad row, and a conversation."""
    listed = [
        {"text": "one three nine eight", "speech": str(EXAMPLES / "digits.wav")},
        {"text": "a landscape", "image": str(EXAMPLES / "photo.jpg")},
        {"text": "nothing", "image": "gone.png"},
        {"text": "a slow tune", "music": str(EXAMPLES / "tune_flute.wav")},
    ]
    request = {"type": "speech", "path": str(EXAMPLES / "voice_slt.wav"), "transcript": "draw it"}
    reply = {"type": "image", "path": str(EXAMPLES / "picture_pair.png")}
    listed.append({"messages": [{"role": "user", "content": [request]}, {"role": "assistant", "content": [reply]}]})
    path = tmp_path_factory.mktemp("manifest") / "list.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in listed), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(manifest_file, tmp_path_factory) -> Path:
    """The rows of that file, made in one go without Ray."""
    out = tmp_path_factory.mktemp("finished") / "rows"
    command = [str(manifest_file), "--out", str(out), "--workers", "0", "--rows-per-shard", "2", "--cut", "music"]
    assert script("prepare_data").main(command) == 0
    return out


def content(out: Path) -> tuple[list[dict], str]:
    return rows.read_table(out).to_pylist(), (out / "rejects.jsonl").read_text(encoding="utf-8")


def test_the_script_makes_rows_of_real_media(finished, processor):
    made, rejects = content(finished)
    assert [json.loads(line)["source"] for line in rejects.splitlines()] == ["list.jsonl:2"] * 2
    assert [row["task"] for row in made] == [
        *("speech->text", "text->speech", "image->text", "text->image", "music->text", "text->music", "messages")
    ]
    said = processor.encode_media("speech", [str(EXAMPLES / "digits.wav")])[0]
    (part,) = processor.parse_output(learned(made[1]))
    assert np.array_equal(part.codes, said)
    manifest = rows.read_manifest(finished)
    rows.check_vocabulary(manifest, processor.tokenizer)
    assert manifest["tokens"] == sum(row["length"] for row in made) and len(manifest["codecs"]["speech"]) == 64


def test_ray_resumes_and_makes_the_same_rows(finished, manifest_file, tmp_path):
    out = tmp_path / "rows"
    out.mkdir()
    # As a killed run leaves it: a shard, a manifest, half a file.
    (out / rows.shard_name(1)).write_bytes((finished / rows.shard_name(1)).read_bytes())
    facts = {k: v for k, v in rows.read_manifest(finished).items() if k not in ("complete", "version")}
    (out / "manifest.json").write_text(json.dumps({"version": rows.VERSION, "complete": False, **facts}))
    (out / ".part-000000.parquet.123.tmp").write_bytes(b"PAR1 half")
    before = (out / rows.shard_name(1)).stat().st_mtime_ns
    command = [str(manifest_file), "--out", str(out), "--workers", "2", "--rows-per-shard", "2", "--cut", "music"]
    assert script("prepare_data").main(command) == 0
    assert content(out) == content(finished)
    assert (out / rows.shard_name(1)).stat().st_mtime_ns == before
    assert not list(out.glob(".*")) and not ray_processes()


def ray_processes() -> list[str]:
    """What is left of Ray among the children of this process."""
    names = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    return [name for name in names if "ray" in name.lower()]


@pytest.mark.parametrize(
    "options, message",
    [
        ("--directions sideways", "invalid choice: 'sideways'"),
        ("--rows-per-shard 0", "--rows-per-shard: 0, allowed are 1 and more"),
        ("--pad-seconds nan", "--pad-seconds: nan"),
        ("--frobnicate", "unrecognized arguments"),
        ("--columns text=caption", "no column 'caption' for text. They have: image, messages, music, speech, text"),
        ("--columns video=clip", "got 'video'"),
        ("--cut image", "image is no sound"),
        ("--audio noise", "Unknown modality 'noise'"),
        ("--model {tmp}/other", "Can't load the checkpoint"),
        ("--model {tmp}/nothing", "Can't load the checkpoint"),
        ("--instructions {tmp}/gone.yaml", "Can't read the instructions"),
        ("--out {tmp}/file/rows", "Not a directory"),
        ("--out {done} --seed 3", "begun with another seed (0, now 3)"),
        ("--out {tmp}", "not empty"),
    ],
)
def test_errors_take_one_line_and_write_nothing(finished, manifest_file, tmp_path, capsys, options, message):
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "nothing").mkdir()
    before = sorted(tmp_path.rglob("*"))
    shared = [str(manifest_file), "--workers", "0", "--rows-per-shard", "2", "--cut", "music"]
    if "--out" not in options:
        shared += ["--out", str(tmp_path / "rows")]
    options = options.format(tmp=tmp_path, done=finished).split()
    try:
        code = script("prepare_data").main([*shared, *options])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err.strip()
    assert code == 2 and message in error and "\n" not in error
    assert sorted(tmp_path.rglob("*")) == before


def test_data_without_a_text_column_say_so(tmp_path, capsys):
    (tmp_path / "list.jsonl").write_text('{"caption": "a", "image": "a.png"}\n')
    command = [str(tmp_path / "list.jsonl"), "--out", str(tmp_path / "rows"), "--workers", "0"]
    assert script("prepare_data").main(command) == 2
    assert (
        "need 'text' and one of image, speech, music, or 'messages'; they have: caption, image"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "rows").exists()


def test_a_row_is_shown_with_what_is_learned(finished, processor, capsys):
    show = script("show_row")
    assert show.main([str(finished), "--task", "text->image"]) == 0
    assert "text->image:" in capsys.readouterr().out
    assert show.main([str(finished), "--row", "99"]) == 2
    assert "No row 99" in capsys.readouterr().err
    made, _ = content(finished)
    text = show.render(made[0], processor.tokenizer, processor.specs, everything=True)
    bold = "".join(text.plain[span.start : span.end] for span in text.spans if "bold" in str(span.style))
    assert bold == words(processor, learned(made[0])) == " one three nine eight<eos>"


@pytest.mark.slow
def test_a_run_killed_five_times_ends_with_the_same_rows(tmp_path):
    """kill -9 at random moments while shards are being made; Ray's processes go with the one that started them."""
    listed = [
        {"text": f"row {i}", "speech": str(EXAMPLES / f"{name}.wav")}
        for i in range(24)
        for name in ("digits", "recording", "voice")
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in listed), encoding="utf-8")

    def command(out: str) -> list[str]:
        options = ["--out", str(tmp_path / out), "--rows-per-shard", "2", "--workers", "2"]
        return [sys.executable, str(ROOT / "train" / "prepare_data.py"), str(path), *options]

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command("whole"), env=environment, check=True, capture_output=True)
    rng, out = random.Random(), tmp_path / "killed"
    for _ in range(5):
        shards = len(list(out.glob("part-*")))
        run = subprocess.Popen(command("killed"), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while len(list(out.glob("part-*"))) == shards:
            assert run.poll() is None, run.stdout.read()
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1))
        family = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(signal.SIGKILL)
        run.wait()
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive
    assert 5 <= len(list(out.glob("part-*"))) < 36
    subprocess.run(command("killed"), env=environment, check=True, capture_output=True)
    assert content(out) == content(tmp_path / "whole")
    sources_seen = [(row["source"], row["task"]) for row in content(out)[0]]
    assert len(sources_seen) == len(set(sources_seen)) == 2 * len(listed)
