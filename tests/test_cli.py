"""The `anygpt` command: what it makes, and one line for whatever is wrong."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from serving_anygpt import __version__, cli, media

ROOT = Path(__file__).parent.parent

BAD = {
    "unknown file": ("generate --to text nothing.wav", "No such file: nothing.wav"),
    "unknown picture": ("generate --to text image:nothing.png", "No such file: nothing.png"),
    "unknown voice": ("generate --to speech --voice nothing.wav hello", "No such file: nothing.wav"),
    "unknown modality": (
        "generate --to video hello",
        "Unknown modality 'video'. This model knows: text, image, speech",
    ),
    "unknown sound modality": ("generate --to text --as video tone.wav", "Unknown modality 'video'"),
    "file of an unknown modality": ("generate --to text video:tone.wav", "Unknown modality 'video'"),
    "empty text": (["generate", "--to", "speech", " "], "empty text"),
    "empty text file": ("generate --to speech empty.txt", "empty text"),
    "empty standard input": ("generate --to speech -", "empty text"),
    "text that is not UTF-8": ("generate --to speech latin.txt", "not UTF-8"),
    "a folder": ("generate --to text folder", "is a folder"),
    "a folder with the name of a sound": ("encode folder.wav", "'folder.wav' is a folder"),
    "a cut recording": ("generate --to text cut.wav", "cut.wav is truncated"),
    "voice of a chat that can't speak": ("chat --model seeing --voice tone.wav", "Unknown modality 'speech'"),
    "no room": ("generate --to image long.txt", "the model has room for 2048. Give less"),
    "unknown type": ("generate --to text table.xlsx", "Cannot tell what 'table.xlsx' is"),
    "empty sound": ("generate --to text empty.wav", "empty"),
    "corrupt sound": ("generate --to text noise.wav", "noise.wav"),
    "corrupt picture": ("generate --to text noise.png", "noise.png"),
    "truncated picture": ("generate --to text cut.png", "truncated"),
    "no such model": ("generate --model nowhere --to text hello", "No such model folder: nowhere"),
    "empty model folder": ("generate --model folder --to text hello", "no config.json"),
    "model of another kind": ("generate --model other_model --to text hello", "'llama' model, not an AnyGPT one"),
    "broken config": ("generate --model broken_model --to text hello", "not valid JSON"),
    "output type": ("generate --to image --out x.wav hello", "must end in .png"),
    "output is a folder": ("generate --to text --out folder hello", "Cannot write"),
    "output folder missing": ("generate --to image --out nowhere/x.png hello", "Cannot write to folder nowhere"),
    "output folder is a file": ("demo --out words.txt", "Cannot write to folder words.txt"),
    "voice of music": ("generate --to music --voice tone.wav hello", "answers that are spoken"),
    "voice of a picture": ("generate --to image --voice tone.wav hello", "--voice"),
    "length of a picture": ("generate --to image --max-seconds 2 hello", "--max-seconds"),
    "length": ("generate --to speech --max-seconds -1 hello", "positive"),
    "no length": ("generate --to speech --max-seconds nan hello", "positive"),
    "shorter than a frame": ("generate --to speech --max-seconds 0.001 hello", "frame"),
    "seed": ("generate --to speech --seed -5 hello", "2^63"),
    "no word": ("generate --to speech", "INPUT"),
    "no modality": ("generate hello", "--to"),
    "no command": ("", "COMMAND"),
    "unknown command": ("draw hello", "draw"),
    "encode text": ("encode words.txt", "not a sound or picture"),
    "decode nothing": ("decode", "no codes"),
    "demo without examples": ("demo --examples nowhere", "No folder nowhere"),
    "chat to nowhere": ("chat --out words.txt", "Cannot write to folder words.txt"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(name, files, anygpt):
    arguments, message = BAD[name]
    code, output, error = anygpt(arguments)
    assert code == 2
    lines = [line for line in error.strip().splitlines() if not line.startswith("loading")]
    assert len(lines) == 1 and lines[0].startswith("anygpt") and message in lines[0], error
    assert output == ""
    assert not list(files.glob("answer*")) and not list(files.glob(".*"))


def test_what_a_sound_is_for_a_model_without_speech():
    rows = {"modalities": [{"name": "image"}, {"name": "music", "sampling_rate": 16000}]}
    assert cli.heard_as(None, rows) == "music"
    assert cli.heard_as(None, {"modalities": rows["modalities"][:1]}) == "speech"  # which it then does not know
    with pytest.raises(ValueError, match="Unknown modality 'speech'"):
        cli.heard_as("speech", rows)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("generate --to text - <&-", "Got an empty text"),
        ("decode <&-", "Got no codes on standard input"),
        ("generate --to text hello >&-", "Standard output is closed"),
        ("generate --to text nothing.wav 2>&-", ""),
        ("generate --to text - < latin.txt", "Standard input is not UTF-8 text"),
    ],
)
def test_streams_that_are_closed_or_no_text(command, message, files):
    program = f"{sys.executable} -m serving_anygpt.cli {command}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, shell=True, cwd=files, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) <= 1
    assert message in done.stderr


DECODE_BAD = {
    "not JSON": ("hello\n", "line 1"),
    "not an object": ("[1, 2]\n", "line 1"),
    "no codes": ('{"modality": "image"}\n', "codes"),
    "modality of another type": ('{"modality": ["image"], "codes": [[1]]}\n', "line 1"),
    "too deep": ("[" * 100_000, "line 1 of standard input is not JSON"),
    "unknown modality": ('{"modality": "video", "codes": [[1]]}\n', "Unknown modality 'video'"),
    "ragged": ('{"modality": "speech", "codes": [[1, 2], [3]]}\n', "codes"),
    "empty": ('{"modality": "speech", "codes": [[]]}\n', "codes"),
    "out of range": ('{"modality": "speech", "codes": [[1, 100000]]}\n', "0..1023"),
    "negative": ('{"modality": "speech", "codes": [[1, -1]]}\n', "0..1023"),
    "fractions": ('{"modality": "speech", "codes": [[1.5, 2]]}\n', "integers"),
    "short picture": ('{"modality": "image", "codes": [[1, 2, 3]]}\n', "64"),
}


@pytest.mark.parametrize("name", DECODE_BAD)
def test_bad_codes(name, files, anygpt):
    stdin, message = DECODE_BAD[name]
    code, _, error = anygpt("decode --json", stdin)
    assert code == 2 and message in error and len(error.strip().splitlines()) == 1, error
    assert not list(files.glob("decoded*"))


def test_unwritable_folder(anygpt, monkeypatch):
    """Root may write anywhere, so the refusal is the file system's, played by a stub."""

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(media.tempfile, "TemporaryFile", refuse)
    code, _, error = anygpt("generate --to image --out red2.png hello")
    assert (code, error) == (2, "anygpt: error: Cannot write to folder .: Permission denied.\n")


def test_version_and_help(anygpt):
    assert anygpt("--version") == (0, f"anygpt {__version__}\n", "")
    for command in ("generate", "chat", "encode", "decode", "demo"):
        code, output, _ = anygpt(f"{command} --help")
        assert code == 0 and "--model" in output


def test_incomplete_checkpoint(files, anygpt, checkpoint):
    """Weights cut short, as by an interrupted download."""
    copy = files / "copy"
    shutil.copytree(checkpoint, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, _, error = anygpt("generate --json --model copy --to text hello")
    assert code == 2 and len(error.strip().splitlines()) == 1 and "copy" in error


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def edit(path, **changes):
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        functools.reduce(dict.__getitem__, parents, content)[last] = value
    path.write_text(json.dumps(content))


def lose(path):
    tensors = load_file(path)
    tensors.pop(min(tensors))
    save_file(tensors, path, {"format": "pt"})


DAMAGED = {
    "table that is none": (lambda c: edit(c / "config.json", modalities=["image"]), "not a list of rows with a name"),
    "config too deep": (lambda c: (c / "config.json").write_text("[" * 100_000), "not valid JSON"),
    "size that is no number": (lambda c: edit(c / "config.json", text_config__hidden_size="x"), "hidden_size"),
    "layer without weights": (lambda c: edit(c / "config.json", text_config__num_hidden_layers=6), "it lacks"),
    "processor that is none": (lambda c: (c / "processor_config.json").write_text("[]"), "complete checkpoint"),
    "codec cut short": (lambda c: cut(c / "speech_codec" / "model.safetensors"), "speech_codec does not hold"),
    "codec without a tensor": (lambda c: lose(c / "speech_codec" / "model.safetensors"), "lacks 1 of its tensors"),
    "codec of another size": (lambda c: edit(c / "speech_codec" / "config.json", codebook_size=512), "does not hold"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_checkpoint(name, files, anygpt, checkpoint):
    damage, message = DAMAGED[name]
    shutil.copytree(checkpoint, files / "copy", dirs_exist_ok=True)
    damage(files / "copy")
    code, output, error = anygpt("generate --json --model copy --to text tone.wav")
    assert code == 2 and output == "" and len(error.strip().splitlines()) == 1, error
    assert "copy" in error and message in error, error
