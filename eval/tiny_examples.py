"""The tiny world's held-out items, as rows of `examples.Example`.

Nothing here was seen in training: sentences, scenes and tunes whose words are held out by
`tiny_world.language.is_held_out`, and two voices never heard. `folder` holds what `train/make_speech_data.py --only
heldout digits` writes (codes_heldout and human_digits, .npz and .flac) and `TimGM6mb.sf2`, the sound font.
"""

import random
from pathlib import Path

import judge_music
import numpy as np
import soundfile

from processing_anygpt.tiny_world import language, pictures, tunes, voices

RATE = 16_000  # Hz, speech and music of the tiny world
SOUND_FONT = "TimGM6mb.sf2"
STRANGERS = ("festival_ked", "joe")  # voices never heard


class Recordings:
    """A .npz of make_speech_data.py with its audio: equal lists `text`, `voice`, `wave`."""

    def __init__(self, stem: Path):
        missing = [stem.with_suffix(suffix) for suffix in (".npz", ".flac") if not stem.with_suffix(suffix).is_file()]
        if missing:
            raise ValueError(
                f"No file {missing[0]}: train/make_speech_data.py --out {stem.parent} --only heldout digits makes it."
            )
        table = np.load(stem.with_suffix(".npz"))
        audio, _ = soundfile.read(stem.with_suffix(".flac"), dtype="float32")
        self.wave = np.split(audio, table["sample_offsets"][1:-1])
        self.text, self.voice = table["text"].tolist(), table["voice"].tolist()

    def of(self, *names: str) -> list[int]:
        return [i for i, voice in enumerate(self.voice) if voice in names]

    def sound(self, index: int) -> tuple[np.ndarray, int]:
        return self.wave[index], RATE


def sound_font(folder: Path) -> str:
    path = folder / SOUND_FONT
    if not path.is_file():
        raise ValueError(f"No sound font {path}: ln -s /usr/share/sounds/sf2/{SOUND_FONT} {folder}")
    return str(path)


def listening(folder: Path) -> list[dict]:
    """Recordings to write down: training voices, strangers, and a person's digits."""
    speech, digits = Recordings(folder / "codes_heldout"), Recordings(folder / "human_digits")
    rows = []
    groups = [("training voices", speech, voices.TRAINING_VOICES)]
    groups += [(f"voice never heard: {name}", speech, (name,)) for name in STRANGERS]
    for group, source, names in [*groups, ("human digits", digits, ("asterisk",))]:
        for i in source.of(*names):
            row = {"id": f"{source.voice[i]}_{i}", "texts": (source.text[i],), "speaker": source.voice[i]}
            rows.append(row | {"given": source.sound(i), "group": group})
    return rows


def speaking(folder: Path, every: int = 2) -> list[dict]:
    """Held-out sentences in training voices, given three seconds of that voice saying something else."""
    speech = Recordings(folder / "codes_heldout")
    rng = random.Random(0)
    rows = []
    for i in speech.of(*voices.TRAINING_VOICES)[::every]:
        others = [k for k in speech.of(speech.voice[i]) if speech.text[k] != speech.text[i]]
        prompt = np.concatenate([speech.wave[k] for k in rng.sample(others, 3)])[: 3 * RATE]
        row = {"id": f"{speech.voice[i]}_{i}", "texts": (speech.text[i],), "speaker": speech.voice[i]}
        rows.append(row | {"reference": speech.sound(i), "voice": (prompt, RATE)})
    return rows


def scenes(folder: Path, count: int = 150, show: bool = True) -> list[dict]:
    """As many pictures of one, two and three things; shown to the model, or to be drawn by it."""
    rng, brush = random.Random(1), random.Random(2)
    kinds = ["single", "pair", "row"]
    captions = [language.sample(kinds[i % 3], rng, held_out=True) for i in range(count)]
    drawn = [pictures.draw(language.parse_scene(caption), brush) for caption in captions]
    key = "given" if show else "reference"
    return [{"id": f"scene_{i}", "texts": (c,), key: p} for i, (c, p) in enumerate(zip(captions, drawn, strict=True))]


def played(folder: Path, rounds: int = 4, show: bool = True) -> list[dict]:
    """Every held-out caption `rounds` times, another melody each time."""
    captions = [c for c in judge_music.tune_captions() if language.is_held_out(c)] * rounds
    rng, font = random.Random(3), sound_font(folder)
    key = "given" if show else "reference"
    rows = []
    for i, caption in enumerate(captions):
        rows.append({"id": f"tune_{i}", "texts": (caption,), key: rendered(caption, rng, font)})
    return rows


def rendered(caption: str, rng: random.Random, font: str) -> tuple[np.ndarray, int]:
    """One of the tunes that fit a caption."""
    tune = language.parse_tune(caption)
    return tunes.render(tunes.notes(tune, rng), tune.instrument, font), RATE


def requests(folder: Path, every: int = 1) -> list[dict]:
    """Requests spoken by training voices: a picture, a tune or a sentence aloud. `texts`: what is asked for;
    `reference`: that, drawn, played, or spoken by the voice that asks."""
    speech = Recordings(folder / "codes_heldout")
    rng, font = random.Random(5), sound_font(folder)
    rows = []
    for i in speech.of(*voices.TRAINING_VOICES):
        inner = language.core(speech.text[i])
        if inner == speech.text[i]:
            continue
        to = "speech" if speech.text[i].startswith("say ") else "music" if " tune on " in inner else "image"
        row = {"id": f"{speech.voice[i]}_{i}", "texts": (inner,), "group": to, "to": to, "speaker": speech.voice[i]}
        if to == "speech":
            answer = voices.say_at_pace(inner, speech.voice[i]), RATE
        elif to == "music":
            answer = rendered(inner, rng, font)
        else:
            answer = pictures.draw(language.parse_scene(inner), None)
        voice = speech.sound(i) if to == "speech" else None
        rows.append(row | {"given": speech.sound(i), "voice": voice, "reference": answer})
    return rows[::every]


def freely(folder: Path, count: int = 1000) -> list[dict]:
    """Requests under every choice of modalities, for replies sampled at a high temperature."""
    rng, names = random.Random(4), ("image", "speech", "music")
    choices = [("text",), *((n,) for n in names), *(("text", n) for n in names), ("text", *names)]
    rows = []
    for i in range(count):
        text = language.expand(rng.choice(["picture_request", "tune_request", "speech_request"]), rng)
        rows.append({"id": f"free_{i}", "texts": (text,), "to": choices[i % len(choices)]})
    return rows
