"""Synthetic voices, the speech data made of them, and the judges of speech."""

import importlib.util
import random
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processing_anygpt.tiny_world import language, voices

ROOT = Path(__file__).parent.parent
# One of each engine; the other voices of an engine differ by a name only.
ENGINES = ("flite_kal16", "hibari", "espeak_en-us+f2", "festival_kal", "joe")

needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="apt-get install flite")
needs_pocketsphinx = pytest.mark.skipif(
    importlib.util.find_spec("pocketsphinx") is None, reason="pip install pocketsphinx"
)


def script(folder: str, name: str):
    """A script of train/ or eval/ as a module; they are no packages."""
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # scripts import each other, and workers find functions by module name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def judge():
    return script("eval", "judge_speech")


@pytest.fixture(scope="module")
def speech_data():
    return script("train", "make_speech_data")


@pytest.mark.parametrize("voice", ENGINES)
def test_every_engine_gives_the_same_form(voice):
    if not voices.is_installed(voice):
        pytest.skip(f"{voice} is not installed")
    wave = voices.say("the dog sees the house", voice)
    assert wave.dtype == np.float32 and wave.ndim == 1
    assert 0.8 < len(wave) / voices.SAMPLING_RATE < 3  # five words
    assert np.abs(wave).max() == pytest.approx(voices.PEAK, abs=1e-3)
    loud = np.flatnonzero(np.abs(wave) > 0.05)
    assert loud[0] < 0.25 * voices.SAMPLING_RATE and len(wave) - loud[-1] < 0.25 * voices.SAMPLING_RATE


@pytest.mark.parametrize("voice", (*voices.TRAINING_VOICES, "joe"))
def test_a_voice_says_the_same_twice(voice):
    if not voices.is_installed(voice):
        pytest.skip(f"{voice} is not installed")
    first, second = (voices.say_at_pace("the dog sees the house", voice) for _ in range(2))
    assert np.array_equal(first, second)


@needs_flite
def test_voices_differ_and_speed_shortens():
    said = [voices.say("a big red circle", voice) for voice in voices.TRAINING_VOICES[:4]]
    assert len({wave.tobytes() for wave in said}) == 4
    lengths = [len(voices.say("a big red circle", "flite_rms", speed)) for speed in (0.8, 1.0, 1.3)]
    assert lengths[0] > 1.1 * lengths[1] > 1.2 * lengths[2]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("hello", "nobody"), "Unknown voice 'nobody'. Known: flite_slt"),
        (("hello", "flite_nobody"), "Unknown voice 'flite_nobody'"),
        (("  ", "flite_slt"), "at least one word"),
        (("hello", "flite_slt", 3.0), "allowed are 0.5 to 2"),
    ],
)
def test_bad_requests_say_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        voices.say(*arguments)


def test_a_missing_program_is_named_with_its_install_command(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="'flite'.*apt-get install flite"):
        voices.say("hello", "flite_slt")
    with pytest.raises(FileNotFoundError, match="'text2wave'.*apt-get install festival"):
        voices.say("hello", "festival_ked")
    monkeypatch.setitem(sys.modules, "piper", None)
    voices._joe_voice.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="pip install piper-tts"):
        voices.say("hello", "joe")


@given(before=st.integers(0, 8000), after=st.integers(0, 8000), scale=st.floats(1e-3, 1.0))
@settings(max_examples=30, deadline=None)
def test_trimming_keeps_the_sound_and_60_ms(before, after, scale):
    tone = np.sin(np.arange(8000) * 0.3).astype(np.float32)
    wave = voices.trim(np.pad(tone * np.float32(scale), (before, after)))
    margin = round(voices.MARGIN * voices.SAMPLING_RATE)
    kept = min(before, margin) + 8000 + min(after, margin)
    assert kept - 320 <= len(wave) <= kept + 320  # it looks in windows of 10 ms
    assert np.abs(wave).max() == pytest.approx(voices.PEAK)


@pytest.mark.parametrize("length", [0, 1, 5000])
def test_trimming_silence_leaves_nothing(length):
    assert voices.trim(np.zeros(length, np.float32)).size == 0


# ---------------------------------------------------------------- data


class CountingCodec:
    """Codes of a wave [B, T]: the integer its samples hold, per frame of 320, on 8 levels. Counts its batches."""

    batches = 0

    def encode(self, values):
        self.batches += 1
        return (values[:, ::320] * 1000).round().long()[:, None].repeat(1, 8, 1)


def test_encoding_keeps_order_and_shares_batches(speech_data):
    codec = CountingCodec()
    waves = [np.full(length, value / 1000, np.float32) for value, length in enumerate([640, 1300, 600, 1920, 639])]
    codes = speech_data.encode(codec, waves)
    assert [row.shape for row in codes] == [(8, 2), (8, 6), (8, 2), (8, 6), (8, 2)]
    assert [int(row[0, 0]) for row in codes] == [0, 1, 2, 3, 4]
    assert codec.batches == 2


@needs_flite
def test_a_part_of_the_training_data(speech_data, monkeypatch, tmp_path):
    monkeypatch.setattr(speech_data, "PART_SECONDS", 6)
    (tmp_path / "parts").mkdir()
    folder = ROOT / "modeling_anygpt" / "pretrained" / "anygpt_tiny" / "speech_codec"
    job = ("flite_kal16", "0", language.sample_spoken, Namespace(out=tmp_path, codec=folder))
    path = speech_data.make_part(job)
    data = np.load(path)
    rows = speech_data.split(data)
    assert len(rows) == len(data["text"]) == len(data["voice"]) and data["codes"].dtype == np.uint16
    assert not any(language.is_held_out(text) for text in data["text"])
    assert {str(voice).split("*")[0] for voice in data["voice"]} == {"flite_kal16"}
    seconds = sum(row.shape[1] for row in rows) / 50
    assert 6 <= seconds < 15 and all(row.shape[0] == 8 for row in rows)
    written = path.stat().st_mtime_ns
    assert speech_data.make_part(job) == path and path.stat().st_mtime_ns == written  # made once


# ---------------------------------------------------------------- judges


def test_word_error_rate(judge):
    assert judge.word_error_rate(["a big red star"], ["a big red star"]) == 0
    assert judge.word_error_rate(["a big red star", "one two"], ["a big star", "one two three"]) == pytest.approx(
        2 / 6
    )
    assert judge.word_error_rate(["a star"], [""]) == 1
    for said, heard in (([], []), (["a"], []), ([" "], ["a"])):
        with pytest.raises(ValueError):
            judge.word_error_rate(said, heard)


def test_loudness_is_not_judged(judge):
    wave = np.sin(np.arange(1000) / 10)
    assert np.array_equal(judge.to_int16(wave), judge.to_int16(wave * 0.01))
    assert np.abs(judge.to_int16(wave)).max() == pytest.approx(0.9 * 32767, rel=1e-3)
    assert not judge.to_int16(np.zeros(10)).any()
    for bad in (np.zeros((2, 10)), np.array([0.0, np.nan])):
        with pytest.raises(ValueError, match="finite mono"):
            judge.to_int16(bad)


@needs_pocketsphinx
def test_the_closed_grammar_writes_every_sentence_of_the_world(judge):
    rng = random.Random(0)
    sentences = {language.sample_spoken(rng) for _ in range(1000)}
    assert [sentence for sentence in sentences if not judge.grammar_accepts(sentence)] == []
    broken = [
        "",
        "red",
        "a big red",
        "a red circle",
        "say",
        "one two",
        "draw a tune",
        "the dog sees",
        "play a big red star",
    ]
    assert [sentence for sentence in broken if judge.grammar_accepts(sentence)] == []


@needs_flite
@needs_pocketsphinx
def test_the_recogniser_reads_a_voice_and_not_noise(judge):
    text = "draw a big blue star"
    wave = voices.say(text, "flite_rms", 1.1)
    assert judge.transcribe(wave) == text
    noise = np.random.default_rng(0).normal(size=24000).astype(np.float32)
    assert judge.transcribe(noise) != text
    assert judge.transcribe(wave) == text  # what came before does not matter
    assert [judge.transcribe(np.zeros(length, np.float32)) for length in (0, 1, 1600)] == [""] * 3
    with pytest.raises(ValueError, match="'closed' and 'open'"):
        judge.transcribe(wave, "other")


@pytest.mark.parametrize("seed", range(4))
def test_a_stranger_says_the_same_in_another_pitch_and_with_noise(speech_data, seed):
    wave = voices.PEAK * np.sin(2 * np.pi * 200 * np.arange(16000) / 16000).astype(np.float32)
    heard, factor = speech_data.as_of_a_stranger(wave, random.Random(seed))
    assert heard.dtype == np.float32 and np.abs(heard).max() == pytest.approx(voices.PEAK)
    assert len(heard) == pytest.approx(len(wave) / factor, abs=2)
    power = np.abs(np.fft.rfft(heard)) ** 2
    pitch = power.argmax() * 16000 / len(heard)
    assert pitch == pytest.approx(200 * factor, rel=0.02)
    assert 1e-5 < 1 - power[np.abs(np.arange(len(power)) - power.argmax()) < 20].sum() / power.sum() < 0.05


def test_nearest_voice_is_the_most_similar(judge, monkeypatch):
    # Waves stand for their speaker: the first two samples are the embedding.
    monkeypatch.setattr(judge, "speaker_embedding", lambda wave: wave[:2] / np.linalg.norm(wave[:2]))
    waves = [np.array(wave) for wave in ([1.0, 0.1], [1.0, -0.1], [0.0, 1.0])]
    centroids = judge.voice_centroids(waves, ["ann", "ann", "bob"])
    assert centroids["ann"] == pytest.approx(np.array([1.0, 0.0]))
    assert [judge.nearest_voice(np.array(wave), centroids) for wave in ([9.0, 1.0], [1.0, 9.0])] == ["ann", "bob"]
