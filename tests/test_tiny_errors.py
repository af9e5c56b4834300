"""The scripts that make anygpt-tiny refuse what can't be in one line, and leave nothing half done."""

import importlib
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_tools import EMBEDDED, small_checkpoint

ROOT = Path(__file__).parent.parent
REFUSED = [
    ("make_tiny_data model --out OUT --config none.yaml", "No such file or directory: 'none.yaml'"),
    ("make_tiny_data model --out OUT --config LIST", "is no recipe of a model"),
    ("make_tiny_data rows --out OUT", "needs --speech or --images or --music"),
    ("make_tiny_data rows --out OUT --music OUT", "No OUT/codes_train.npz"),
    ("make_tiny_data chat --out OUT --speech x", "needs --speech and --music"),
    ("make_music_data --out OUT --sound-font none.sf2", "No sound font at 'none.sf2'"),
    ("make_music_data --out OUT --sound-font LIST", "is no sound font"),
    ("make_music_data --out OUT --sound-font x --clips 0", "--clips: got 0, allowed: 1 or more"),
    ("make_music_data --out OUT --sound-font x --clips-in-c -1", "--clips-in-c: got -1, allowed: 0 or more"),
    ("make_music_data --out OUT --sound-font x --clips-in-c 1", "go with --codec"),
    ("make_speech_data --out OUT --hours nan", "--hours: got nan, allowed: above 0"),
    ("make_speech_data --out OUT --hours 0", "--hours: got 0.0, allowed: above 0"),
    ("make_speech_data --out OUT --workers 0", "--workers: got 0, allowed"),
    ("make_speech_data --out OUT --only digits --asterisk OUT", "No OUT/0.g722. Install it"),
    ("make_speech_data --out OUT --only train --codec CODEC", "holds a model of type 'anygpt_spectral_codec'"),
    ("make_codec_data --out OUT --minutes inf", "--minutes: got inf, allowed: 0 or more"),
    ("make_codec_data --out OUT --minutes 0", "makes nothing"),
    ("make_codec_data --out OUT --workers 0", "--workers: got 0, allowed: 1 or more"),
    ("data_image pictures --out OUT --count 0", "--count: got 0, allowed: 1 or more"),
    ("data_image pictures --out OUT --crowded nan", "--crowded: got nan, allowed: 0 to 1"),
    ("data_image pictures --out HERE", "is a folder, allowed: the name of an npz file"),
    ("data_image codes --out OUT --codec CODEC --scale nan", "--scale: got nan, allowed"),
    ("data_image codes --out OUT --codec CODEC --threads 0", "--threads: got 0, allowed"),
    ("data_image codes --out OUT --codec CODEC", "Error no file named diffusion_pytorch_model"),
    ("assemble_tiny --lm x --tokenizer x --out OUT --presets none.yaml", "No such file or directory: 'none.yaml'"),
    ("assemble_tiny --lm x --tokenizer x --out OUT --presets LIST", "holds no presets"),
    ("assemble_tiny --lm CODEC --tokenizer x --out OUT", "type 'anygpt_spectral_codec', allowed: train/lm.py's"),
    ("make_lesson --out OUT --sound-font none.sf2", "No sound font at 'none.sf2'"),
    ("lm none.yaml", "No such file or directory: 'none.yaml'"),
    ("lm LM --mixture 3", "mixture: got 3, allowed: {TASK: SHARE"),
    ("lm LM '--mixture={asr: -1}'", "mixture: got {'asr': -1}, allowed"),
    ("lm LM '--mixture={asr: .nan}'", "mixture: got {'asr': nan}, allowed"),
    ("lm LM --max_steps 0", "max_steps: got 0, allowed: 1 or more"),
    ("lm LM --tokens_per_batch 0", "tokens_per_batch: got 0, allowed: 1 or more"),
    ("lm LM --per_device_train_batch_size 8", "per_device_train_batch_size: got 8, allowed: 1; use tokens_per_batch"),
    ("lm LM --rows OUT", "No such file or directory: 'OUT/asr_train.npz'"),
]


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "train")
    return importlib.import_module


@pytest.mark.parametrize("command, message", REFUSED)
def test_what_can_not_be_is_refused_in_one_line(command, message, scripts, tmp_path, monkeypatch, capsys):
    if "sf2" in command or "sound-font LIST" in command:
        pytest.importorskip("tinysoundfont")
    out = tmp_path / "out"
    (tmp_path / "list.yaml").write_text("- 1\n")
    name, *words = shlex.split(command)
    places = {"OUT": out, "LIST": tmp_path / "list.yaml", "CODEC": EMBEDDED / "music_codec", "HERE": tmp_path}
    places["LM"] = ROOT / "train/configs/tiny_pretrain.yaml"
    words = [str(places.get(word, word)) for word in words]
    if name == "lm":
        words += ["--output_dir", str(out)]
    monkeypatch.setattr("sys.argv", [f"{name}.py", *words])
    with pytest.raises(SystemExit) as stop:
        scripts("settings").run_script(scripts(name).main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith(f"{name}.py: error: ") and error.count("\n") == 1
    assert message.replace("OUT", str(out)) in error
    assert not out.exists()


def test_models_of_two_shapes_have_no_mean(scripts):
    with pytest.raises(ValueError, match="Got models of different weights"):
        scripts("assemble_tiny").mean_of([torch.nn.Linear(1, 2), torch.nn.Linear(2, 1)])


def test_assembled_checkpoint_is_whole(scripts, tmp_path, monkeypatch):
    """Model and processor in one folder, beside what is there already; after an error on the way nothing new."""
    script, out = scripts("assemble_tiny"), tmp_path / "out"
    small_checkpoint(tmp_path / "lm", tied=True)
    (out / "music_codec").mkdir(parents=True)
    words = ["--lm", str(tmp_path / "lm"), "--tokenizer", str(EMBEDDED), "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(script, "drop_code_copies", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            script.main(words)
    assert [path.name for path in out.iterdir()] == ["music_codec"]
    script.main(words)
    names = {path.name for path in out.iterdir()}
    assert {"music_codec", "config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    assert not any(name.endswith(".py") for name in names)


@pytest.mark.parametrize("script", ["codec_speech", "codec_decoder", "codec_music", "codec_image", "soundstorm", "lm"])
def test_what_trains_on_a_gpu_machine_needs_little_there(script):
    """Data are made elsewhere, so what only makes or reads those may be missing."""
    lacking = ("pyarrow", "datasets", "trl", "evaluate", "ray", "soundfile", "soxr", "tinysoundfont")
    probe = f"import sys; sys.modules |= dict.fromkeys({lacking}); sys.path[:0] = ['train', '.']; import {script}"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
