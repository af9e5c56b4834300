"""Forms of raw data, and folders of rows."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image
from preparation_tools import MEDIA, grey, learned, words
from processing_tools import make_processor, tone

from processing_anygpt import preparation, rows, sources
from processing_anygpt.conversation import IGNORED
from processing_anygpt.instructions import load_instructions
from processing_anygpt.parts import parse


@pytest.fixture(scope="module")
def fake():
    """A processor with exact codecs: sound at 1600 Hz, speech of 50 codes a second, music of 2 x 25."""
    return make_processor()


@pytest.fixture(scope="module")
def defaults():
    return preparation.Settings(max_tokens=1000, instructions=load_instructions(MEDIA))


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


NAMES = sources.Names(MEDIA, ("speech", "music"), "speech", "image")


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
    assert [reject["source"] for reject in rejects] == (["only_words"] if form == "folder" else [])
    assert len(made) == 7 == len({row["source"] for row in made})
    expected = read_all(collection["list.jsonl"], 100)
    wanted, _ = preparation.prepare(expected, str(path.parent), fake, replace(defaults, directions="x-to-text"))

    def content(row):  # the instruction depends on the source's name
        parts = parse(row["input_ids"], fake.tokenizer, fake.specs)
        return words(fake, learned(row)), [part.codes.tolist() for part in parts if part.codes is not None]

    assert sorted(map(content, made)) == sorted(map(content, wanted))


@pytest.mark.parametrize("form", ["folder", "list.jsonl", "list.parquet", "saved", "web.tar"])
def test_units_of_any_size_hold_every_row_once_and_in_order(collection, form):
    whole = read_all(collection[form], 100)
    assert len(whole) == 7 + (form == "folder")  # a text alone, which is rejected by name
    for size in (1, 2, 5, 7):
        assert read_all(collection[form], size) == whole


def test_a_folder_may_be_called_what_its_sounds_are(collection):
    columns = {column for _, record in read_all(collection["folder"] / "music", 100) for column in record}
    assert columns == {"text", "music"}


def test_files_of_unknown_kinds_are_rejected_by_name(tmp_path, fake, defaults):
    for name in ("phone.m4a", "phone.txt", "page.json", "good.wav", "good.txt", "good.lab"):
        (tmp_path / name).write_text("a dog")
    soundfile.write(tmp_path / "good.wav", tone(0.1, 1600), 1600)
    made, rejects = preparation.prepare(read_all(tmp_path, 100), str(tmp_path), fake, defaults)
    assert {row["source"] for row in made} == {"good"}
    (reject,) = rejects
    assert reject["source"] == "phone" and "Can't use phone.m4a: known are .wav, .flac" in reject["reason"]
    for name in ("good.wav", "good.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"None of the first 1 rows .* Can't use phone.m4a"):
        sources.columns(sources.plan([str(tmp_path)], 100, NAMES, "train"))


def test_two_files_of_one_name_and_modality_are_named(tmp_path, fake, defaults):
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, tone(0.1, 1600), 1600)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")  # another modality: no trouble
    (tmp_path / "a.txt").write_text("a dog")
    made, (reject,) = preparation.prepare(read_all(tmp_path, 100), str(tmp_path), fake, defaults)
    assert not made and "Can't use a.wav: another file of its modality has that name" in reject["reason"]
    with tarfile.open(tmp_path / "web.tar", "w") as tar:
        for name in ("a.flac", "a.txt", "a.wav"):
            tar.add(tmp_path / name, name)
    (record,) = [record for _, record in read_all(tmp_path / "web.tar", 100)]
    assert "Can't read a.wav: another file of its modality" in str(record)


def test_a_picture_in_a_folder_of_music_is_a_picture():
    assert NAMES.column(PurePosixPath("music/x.webp"))[1] == "image"
    assert NAMES.column(PurePosixPath("music/x.wav"))[1] == "music"


def test_another_text_is_another_input(tmp_path):
    """Of the same length: a run that goes on would leave the old rows."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.wav").write_bytes(b"x")
    for path, text in ((tmp_path / "list.jsonl", '{"document": "a %s"}'), (tmp_path / "folder" / "a.txt", "a %s")):
        prints = set()
        for word in ("cat", "dog", "cat"):
            path.write_text(text % word)
            source = str(path if path.suffix == ".jsonl" else path.parent)
            prints.add(sources.plan_fingerprint(sources.plan([source], 10, NAMES, "train")))
        assert len(prints) == 2


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


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_a_tar_that_is_damaged_in_the_middle_is_no_shorter_one(tmp_path):
    path = write_tar(tmp_path / "web.tar", {f"{i}.txt": b"words" for i in range(6)})
    whole = path.read_bytes()
    assert len(read_all(path, 2)) == 6
    path.write_bytes(whole.rstrip(b"\0").ljust(6 * 1024, b"\0"))  # without the blocks of zeros at its end
    assert len(read_all(path, 2)) == 6
    for damage in (b"\xaa" * 512, bytes(512)):
        path.write_bytes(whole[:3072] + damage + whole[3584:])
        with pytest.raises(ValueError, match=r"Can't read .*web.tar: no header of a file at byte 3072"):
            read_all(path, 2)
    path.write_bytes(whole + whole)  # two archives in one: only the first would be read
    with pytest.raises(ValueError, match="no header of a file at byte 6144"):
        read_all(path, 2)


def test_json_in_a_tar_may_be_nested_too_deep(tmp_path):
    files = {"0.json": b"[" * 100_000, "1.json": b'{"text": "a"}'}
    (_, bad), (_, good) = read_all(write_tar(tmp_path / "web.tar", files), 10)
    assert "Can't read 0.json" in str(bad) and good == {"text": "a"}


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"text": [f"words {i}" * 40 for i in range(100)]}), path, compression="none")
    data = path.read_bytes()
    path.write_bytes(data[:20] + bytes(2000) + data[2020:])
    with pytest.raises(ValueError, match=r"list.parquet is no whole parquet file \("):
        read_all(path, 100)


def test_two_inputs_of_one_name_share_no_id(tmp_path):
    for folder in ("a", "b"):
        for name in ("clips", "lists"):
            (tmp_path / folder / name).mkdir(parents=True)
        (tmp_path / folder / "clips" / "1.wav").touch()
        for name in ("lists/list.jsonl", f"{folder}.jsonl"):
            (tmp_path / folder / name).write_text('{"text": "x"}\n')

    def ids(*inputs: str) -> list[str]:
        units = sources.plan([str(tmp_path / name) for name in inputs], 10, NAMES, "train")
        return [source for unit in units for source, _ in sources.read(unit)]

    assert ids("a/clips", "b/clips") == ["1:1", "2:1"]
    assert ids("a/lists", "b/lists/list.jsonl") == ["1:list.jsonl:0", "2:list.jsonl:0"]
    assert ids("a/a.jsonl", "a/a.jsonl", "b/clips") == ["1:a.jsonl:0", "2:a.jsonl:0", "3:1"]
    # As they were where nothing can be mistaken.
    assert ids("a/clips", "a/a.jsonl", "b/b.jsonl") == ["1", "a.jsonl:0", "b.jsonl:0"]


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


def test_damaged_folders_of_rows_say_what_and_where(tmp_path):
    out = tmp_path / "rows"
    facts = FACTS | {"units": 1}
    rows.begin(out, facts)
    shard = out / rows.shard_name(0)
    for content in (b"", b"PAR1 junk"):
        shard.write_bytes(content)
        with pytest.raises(ValueError, match=r"part-000000.parquet is no whole parquet file"):
            rows.finish(out, facts)
    pq.write_table(pa.table({"a": [1]}), shard)
    with pytest.raises(ValueError, match=r"part-000000.parquet is no shard of rows"):
        rows.finish(out, facts)
    rows.write_shard(shard, some_rows("a"), [], MEDIA)
    rows.finish(out, facts)
    shard.write_bytes(b"")
    with pytest.raises(ValueError, match=r"part-000000.parquet is no whole parquet file"):
        rows.read_table(out)
    for content, message in (('{"version": 1}', "has no 'complete'"), ("[" * 100_000, "is not valid JSON")):
        (out / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            rows.read_table(out)


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
