"""The speech codec's training script learns, saves and goes on; its data step labels phones."""

import functools
import importlib.util
import itertools
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_anygpt.codecs.speech_tokenizer import SpeechTokenizerConfig, SpeechTokenizerModel
from processing_anygpt.tiny_world import voices

pytestmark = pytest.mark.slow
TRAIN = Path(__file__).parent.parent / "train"


def script(name: str):
    """A script of train/ as a module; train is no package."""
    spec = importlib.util.spec_from_file_location(name, TRAIN / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def one_thread():
    """The layers of these tests are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(tmp_path) -> Path:
    """Tones as speech: a new one of five pitches every 60 ms, its number as the phone."""
    rng = np.random.default_rng(0)
    phones = np.repeat(rng.integers(0, 5, 40), 3).astype(np.int8)
    pitch = np.repeat(200 * 1.5**phones, 320)
    audio = (20000 * np.sin(np.cumsum(pitch) * 2 * np.pi / 16000)).astype(np.int16)
    np.savez_compressed(tmp_path / "clips_tones.npz", audio=audio, phones=phones)
    return tmp_path


def test_it_learns_resumes_and_saves_a_model(data, one_thread, tmp_path, monkeypatch, capsys):
    train = script("codec_speech")
    monkeypatch.setattr(
        train,
        "CONFIG",
        SpeechTokenizerConfig(
            n_filters=4, dimension=64, semantic_dimension=64, lstm_layers=1, num_codebooks=2, codebook_size=16
        ),
    )
    small = functools.partial(train.Adversary, windows=(256,), width=4)
    monkeypatch.setattr(train, "Adversary", small)
    out = tmp_path / "codec"
    command = ["codec_speech.py", "--data", str(data), "--out", str(out)]
    command += "--batch 2 --frames 10 --log 5 --warm 4 --learning-rate 0.01".split()

    def run(*more: str) -> list[tuple[int, float]]:
        monkeypatch.setattr(sys, "argv", [*command, *more])
        train.main()
        lines = re.findall(r"step (\d+), .* mel ([\d.]+)", capsys.readouterr().out)
        return [(int(step), float(mel)) for step, mel in lines]

    first = run("--steps", "10")
    # The adversary joins halfway through each run's steps: at 5, which a checkpoint keeps, then 10 and 15.
    second = run("--steps", "20", "--resume")
    third = run("--steps", "30", "--resume")
    assert [step for step, _ in first + second + third] == [5, 10, 15, 20, 25, 30]
    losses = [mel for _, mel in first + second + third]
    assert losses[-1] < 0.95 * losses[0]

    codec = SpeechTokenizerModel.from_pretrained(out)
    assert codec.dtype == torch.float32 and codec.config.num_codebooks == 2
    audio = torch.from_numpy(np.load(data / "clips_tones.npz")["audio"][None, :6400] / np.float32(32768))
    codes = codec.encode(audio)
    assert codes.shape == (1, 2, 20)  # 30 steps are too few to ask how many codes are in use
    saved = (out / "model.safetensors").stat().st_size
    assert saved < 3 * sum(tensor.numel() for tensor in codec.state_dict().values())  # bytes: float16


def test_no_data_says_how_to_make_it(tmp_path):
    with pytest.raises(ValueError, match="train/make_codec_data.py"):
        script("codec_speech").load_data(tmp_path, "cpu")


@pytest.mark.skipif(shutil.which("flite") is None, reason="apt-get install flite")
def test_phones_follow_the_words():
    pytest.importorskip("pocketsphinx")
    make = script("make_codec_data")
    audio = make.to_frames(voices.say("red star", "flite_rms"))
    labels = make.align(audio, "red star")
    assert labels.shape == (len(audio) // make.HOP,)
    heard = [make.PHONES[label] for label, _ in itertools.groupby(labels) if make.PHONES[label] != "SIL"]
    assert heard == ["R", "EH", "D", "S", "T", "AA", "R"]
    assert make.PHONES[labels[0]] == "SIL"
