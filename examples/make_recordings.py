"""Make the recordings of this folder: python examples/make_recordings.py

What they say is in README.md. Nothing here went through a codec, and none of the sentences was in training data. The
voice samples are cut or slowed to 3 s at most.
"""

import sys
from pathlib import Path

import soundfile

from processing_anygpt.tiny_world import language, voices

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "train"))

from make_speech_data import human_digits  # noqa: E402

SPOKEN = {
    "request_picture": ("draw a big blue star", "flite_slt"),
    "request_tune": ("play a fast happy tune on the trumpet going down", "flite_rms"),
    "request_speech": ("say the big dog finds the table", "hibari"),
    "recording": ("the horse wants the apple tomorrow", "festival_ked"),
}
SAMPLE = "a small yellow heart left of a small pink star"
SECONDS = 3.0


def main():
    for name, (text, voice) in SPOKEN.items():
        if not language.is_held_out(text):
            raise ValueError(f"{text!r} may be in training data; choose a sentence with language.is_held_out.")
        write(name, voices.say_at_pace(text, voice), text)
    for voice in voices.TRAINING_VOICES:
        own_pace = len(voices.say(SAMPLE, voice)) / voices.SAMPLING_RATE
        wave = voices.say(SAMPLE, voice, min(1.3, max(0.8, own_pace / (SECONDS - 0.05))))
        name = "voice" if voice == "flite_awb" else f"voice_{voice.removeprefix('flite_')}"
        write(name, wave[: round(SECONDS * voices.SAMPLING_RATE)], SAMPLE)
    strings = human_digits("/usr/share/asterisk/sounds/en_US_f_Allison/digits", 40, "examples")
    short = [(wave, text) for wave, text, _ in strings if len(wave) < SECONDS * voices.SAMPLING_RATE]
    for name, (wave, text) in zip(("digits", "digits_2"), short, strict=False):
        write(name, wave, text)


def write(name: str, wave, text: str):
    soundfile.write(HERE / f"{name}.wav", wave, voices.SAMPLING_RATE, subtype="PCM_16")
    print(f"| {name}.wav | {text} | {len(wave) / voices.SAMPLING_RATE:.1f} s |")


if __name__ == "__main__":
    main()
