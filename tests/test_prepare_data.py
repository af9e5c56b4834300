"""train/prepare_data.py and show_row.py: real media, Ray, killed runs, errors."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from preparation_tools import learned, words

from processing_anygpt import rows

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def script(name: str):
    """A script of train/ as a module; train is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "train" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_ray_resumes_and_makes_the_same_rows(finished, manifest_file, tmp_path, monkeypatch):
    out = tmp_path / "rows"
    out.mkdir()
    monkeypatch.setenv("ANYGPT_TEST_RUN", str(tmp_path))  # Ray's processes inherit it; other runs of Ray have another
    # As a killed run leaves it: a shard, a manifest, half a file.
    (out / rows.shard_name(1)).write_bytes((finished / rows.shard_name(1)).read_bytes())
    facts = {k: v for k, v in rows.read_manifest(finished).items() if k not in ("complete", "version")}
    (out / "manifest.json").write_text(json.dumps({"version": rows.VERSION, "complete": False, **facts}))
    (out / ".part-000000.parquet.123.tmp").write_bytes(b"PAR1 half")
    before = (out / rows.shard_name(1)).stat().st_mtime_ns
    command = [str(manifest_file), "--out", str(out), "--workers", "1", "--rows-per-shard", "2", "--cut", "music"]
    assert script("prepare_data").main(command) == 0
    assert content(out) == content(finished)
    assert (out / rows.shard_name(1)).stat().st_mtime_ns == before
    assert not list(out.glob(".*")) and not ray_processes(run=str(tmp_path))


def ray_processes(run: str) -> list[psutil.Process]:
    """Processes that the run of Ray of this name started and that don't end within a minute."""
    rays = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("ANYGPT_TEST_RUN") == run:
                rays.append(process)
        except psutil.Error:  # ended meanwhile, or another user's
            continue
    return psutil.wait_procs(rays, timeout=60)[1]


@pytest.mark.parametrize(
    "options, message",
    [
        ("--directions sideways", "invalid choice: 'sideways'"),
        ("--rows-per-shard 0", "--rows-per-shard: 0, allowed are 1 and more"),
        ("--pad-seconds nan", "--pad-seconds: nan"),
        ("--pad-seconds 1e9", "--pad-seconds: 1000000000.0, allowed are 0 to 600"),
        ("--voice-seconds 601", "--voice-seconds: 601.0, allowed are 0 to 600"),
        ("--gpus-per-worker 99", "torch sees"),
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
        "need 'text' and one of image, speech, music, or 'messages', or 'document'; they have: caption, image"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "rows").exists()


def test_documents_are_plain_text_in_pieces(tmp_path, processor):
    """No marker of a conversation around them, and none in them, whatever they spell."""
    texts = ["the dog wants the tree tomorrow", "<sosp> one two<eos>", " ", None]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"story": text}) + "\n" for text in texts))
    out = tmp_path / "rows"
    command = [str(path), "--columns", "document=story", "--out", str(out), "--workers", "0", "--max-tokens", "5"]
    assert script("prepare_data").main(command) == 0
    made, rejects = content(out)
    assert "need a string in 'story', got ' '" in rejects and len(rejects.splitlines()) == 2
    assert "need a string in 'text', or a document in 'story', got None" in rejects
    assert all(row["labels"] == row["input_ids"] and 2 <= row["length"] <= 5 for row in made)
    assert len({row["source"] for row in made}) == len(made) and {row["task"] for row in made} == {"document"}
    for number, text in enumerate(texts[:2]):
        pieces = [row["input_ids"] for row in made if row["source"].startswith(f"texts.jsonl:{number}")]
        whole = pieces[0] + [number for piece in pieces[1:] for number in piece[1:]]
        assert processor.tokenizer.decode(whole).strip() == text
    assert not any(row["modality_tokens"]["speech"] for row in made)


def test_a_row_is_shown_with_what_is_learned(finished, processor, capsys, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "train")
    show = script("show_row")
    show.main([str(finished), "--task", "text->image"])
    assert "text->image:" in capsys.readouterr().out
    with pytest.raises(ValueError, match="No row 99"):
        show.main([str(finished), "--row", "99"])
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
        _, alive = psutil.wait_procs(family, timeout=120)
        assert not alive
    assert 5 <= len(list(out.glob("part-*"))) < 36
    subprocess.run(command("killed"), env=environment, check=True, capture_output=True)
    assert content(out) == content(tmp_path / "whole")
    sources_seen = [(row["source"], row["task"]) for row in content(out)[0]]
    assert len(sources_seen) == len(set(sources_seen)) == 2 * len(listed)
