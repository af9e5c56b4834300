"""Judges: what of an answer is right, heard, similar or pleasant, item by item.

`build(spec, ...)` makes a judge of a protocol's `judges` entry: a function of examples and their outputs that gives a
dict of fields each. Keys of every entry: "judge" (a name below), "systems" (only these kinds), "group" (only these
examples), "every" (only each N-th example), "revision" (its commit on the hub, or packages with their versions: what
differs is noted as a deviation), and its own.

| judge | fields | its own keys |
|---|---|---|
| pocketsphinx | heard_GRAMMAR, exact_GRAMMAR | grammar: closed or open |
| whisper | heard | checkpoint |
| nearest_voice | voice_right | |
| speaker_similarity | similarity | checkpoint, to: voice or reference |
| dnsmos | quality | |
| clip_score, clip_i, clap_score | of the same name | checkpoint |
| scene_words, scene_pixels | right | |
| tune_words, tune_sound | tempo, mode, instrument, contour, right | |
| tune_notes | note_f1 | |
| well_formed | malformed | |

Right and wrong are 1.0 and 0.0. A checkpoint is a folder below the folder of judges.
"""

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path

import evaluate
import judge_music
import judge_speech
import numpy as np
import tiny_examples
from checkpoints import checkpoint
from systems import Output

from examples import Example, sound
from processing_anygpt.tiny_world import language, pictures, voices

Judge = Callable[[list[Example], list[Output]], list[dict]]
TUNE_FIELDS = ("instrument", "tempo", "mode", "contour")
REQUESTED = ("instrument", "tempo", "mode")  # what a spoken request for a tune is judged by; contour comes on top
HEARING_RATE = 16_000  # Hz, of every judge of speech


def build(spec: dict, data: Path, folder: Path | None, model=None, device: str = "cpu") -> Judge:
    """The judge of a protocol's entry.

    Args:
        data: folder of the protocol's data, for judges that learn voices or instruments from it.
        folder: of the learned judges.
        model: the language model that is judged; "well_formed" needs its modality table.

    Raises:
        ValueError: unknown judge, or its checkpoint is not there.
    """
    own = {k: v for k, v in spec.items() if k not in ("judge", "systems", "group", "every", "revision")}
    if "checkpoint" in own and own["checkpoint"] != "resemblyzer":
        own["checkpoint"] = checkpoint(own["checkpoint"], folder, spec.get("revision"))
        own["device"] = device
    make = {
        "pocketsphinx": pocketsphinx,
        "whisper": whisper,
        "nearest_voice": lambda: nearest_voice(data),
        "speaker_similarity": speaker_similarity,
        "dnsmos": dnsmos,
        "clip_score": functools.partial(image_score, "clip_score"),
        "clip_i": functools.partial(image_score, "clip_i"),
        "clap_score": clap_score,
        "scene_words": lambda: scene_words,
        "scene_pixels": lambda: scene_pixels,
        "tune_words": lambda: tune_words,
        "tune_notes": lambda: tune_notes,
        "tune_sound": lambda: tune_sound(data),
        "well_formed": lambda: well_formed(model),
    }
    if spec["judge"] not in make:
        raise ValueError(f"Unknown judge {spec['judge']!r}. Known: {', '.join(make)}.")
    try:
        inspect.signature(make[spec["judge"]]).bind(**own)
    except TypeError as error:
        raise ValueError(f"Judge {spec['judge']}: {error}. Its keys are in the table of eval/judges.py.") from None
    return make[spec["judge"]](**own)


@functools.cache
def metric(name: str):
    """A module of metrics/, loaded once; each process keeps its own scratch files."""
    return evaluate.load(str(Path(__file__).parent / "metrics" / name), experiment_id=str(os.getpid()))


def heard_at(output: Output) -> np.ndarray:
    """The waveform of a spoken answer at the rate of the judges."""
    return sound(output.medium, HEARING_RATE)[0]


# ---------------------------------------------------------------- speech


def pocketsphinx(grammar: str) -> Judge:
    def judge(examples, outputs):
        heard = [judge_speech.transcribe(heard_at(output), grammar) for output in outputs]
        return [
            {f"heard_{grammar}": words, f"exact_{grammar}": float(words == example.texts[0])}
            for words, example in zip(heard, examples, strict=True)
        ]

    return judge


@functools.cache  # several systems and protocols are judged by the same one
def whisper(checkpoint: str, device: str) -> Judge:
    """Greedy transcription in English."""
    from transformers import pipeline

    listen = pipeline("automatic-speech-recognition", model=checkpoint, device=device)

    def judge(examples, outputs):
        waves = [{"raw": heard_at(output), "sampling_rate": HEARING_RATE} for output in outputs]
        long = any(len(wave["raw"]) > 30 * HEARING_RATE for wave in waves)  # more than one window
        options = {"language": "en", "task": "transcribe", "do_sample": False, "num_beams": 1}
        heard = listen(waves, generate_kwargs=options, batch_size=8, return_timestamps=long)
        return [{"heard": text["text"].strip()} for text in heard]

    return judge


@functools.cache  # learns the voices once a run
def nearest_voice(data: Path) -> Judge:
    """Whether the voice asked for is the nearest of the training voices."""
    speech = tiny_examples.Recordings(data / "codes_heldout")
    known = speech.of(*voices.TRAINING_VOICES)
    centroids = judge_speech.voice_centroids([speech.wave[i] for i in known], [speech.voice[i] for i in known])

    def judge(examples, outputs):
        waves = [heard_at(output) for output in outputs]
        near = [judge_speech.nearest_voice(wave, centroids) for wave in waves]
        return [{"voice_right": float(voice == e.speaker)} for voice, e in zip(near, examples, strict=True)]

    return judge


def speaker_similarity(checkpoint: str, to: str = "voice", device: str = "cpu") -> Judge:
    def judge(examples, outputs):
        wanted = [sound(getattr(example, to), HEARING_RATE)[0] for example in examples]
        options = {"checkpoint": checkpoint, "device": device, "sampling_rate": HEARING_RATE, "resamples": 2}
        found = metric("speaker_similarity").compute(
            predictions=[heard_at(output) for output in outputs], references=wanted, **options
        )
        return [{"similarity": score} for score in found["items"]]

    return judge


def dnsmos() -> Judge:
    """Quality of speech, 1 to 5. An answer without any sound gets 1: DNSMOS itself rates silence 1.84, above speech
    through a small codec, because it listens for noise and not for words."""

    def judge(examples, outputs):
        waves = [heard_at(output) for output in outputs]
        return [{"quality": judge_speech.dnsmos(wave) if wave.any() else 1.0} for wave in waves]

    return judge


# ---------------------------------------------------------------- pictures


def image_score(name: str, checkpoint: str, device: str) -> Judge:
    def judge(examples, outputs):
        wanted = [e.texts[0] if name == "clip_score" else e.reference for e in examples]
        options = {"checkpoint": checkpoint, "device": device, "resamples": 2}
        found = metric(name).compute(predictions=[o.medium for o in outputs], references=wanted, **options)
        return [{name: score} for score in found["items"]]

    return judge


def scene_words(examples, outputs):
    """Whether the caption names the scene, in either way of saying it."""

    def right(said: str, wanted: str) -> bool:
        try:
            scene = language.parse_scene(said)
        except ValueError:
            return False
        return pictures.canonical(scene) == pictures.canonical(language.parse_scene(wanted))

    return [{"right": float(right(o.text, e.texts[0]))} for e, o in zip(examples, outputs, strict=True)]


def scene_pixels(examples, outputs):
    """Whether the picture shows the scene, against rendered references."""
    scenes = [language.parse_scene(example.texts[0]) for example in examples]
    return [{"right": float(pictures.matches(o.medium, s))} for s, o in zip(scenes, outputs, strict=True)]


# ---------------------------------------------------------------- music


def clap_score(checkpoint: str, device: str) -> Judge:
    """Of the music that was made with its caption, or of the music that was shown with the caption written."""

    def judge(examples, outputs):
        made = outputs[0].medium is not None
        pairs = zip(examples, outputs, strict=True)
        sounds, texts = zip(*((o.medium, e.texts[0]) if made else (e.given, o.text) for e, o in pairs), strict=True)
        rate = sound(sounds[0])[1]
        options = {"checkpoint": checkpoint, "device": device, "sampling_rate": rate, "resamples": 2}
        waves = [sound(each, rate)[0] for each in sounds]
        found = metric("clap_score").compute(predictions=waves, references=list(texts), **options)
        return [{"clap_score": score} for score in found["items"]]

    return judge


def tune_words(examples, outputs):
    """Which attributes a description of a tune has right."""
    results = []
    for example, output in zip(examples, outputs, strict=True):
        try:
            said = vars(language.parse_tune(output.text))
        except ValueError:
            said = {}
        results.append(compared(said, language.parse_tune(example.texts[0]), TUNE_FIELDS))
    return results


def tune_sound(data: Path) -> Judge:
    """Which attributes the tune that is played has, by basic-pitch, librosa and a classifier of instruments."""
    instrument = instrument_judge(tiny_examples.sound_font(data))

    def judge(examples, outputs):
        results = []
        for example, output in zip(examples, outputs, strict=True):
            heard = judge_music.judge(*output.medium, instrument)
            results.append(compared(heard, language.parse_tune(example.texts[0]), REQUESTED))
        return results

    return judge


def tune_notes(examples, outputs):
    """How many notes of the reference are there, against basic-pitch's reading of both."""
    results = []
    for example, output in zip(examples, outputs, strict=True):
        original, heard = (judge_music.notes(*sound(medium)) for medium in (example.reference, output.medium))
        results.append({"note_f1": judge_music.note_f1(original, heard)})
    return results


@functools.cache
def instrument_judge(font: str) -> judge_music.InstrumentJudge:
    """Fitted once a run: it renders some hundred clips."""
    return judge_music.InstrumentJudge(font)


def compared(heard: dict, tune: language.Tune, needed: tuple[str, ...]) -> dict:
    fields = {name: float(heard.get(name) == getattr(tune, name)) for name in TUNE_FIELDS}
    return fields | {"right": float(all(fields[name] for name in needed))}


# ---------------------------------------------------------------- form


def well_formed(model) -> Judge:
    """Read token by token, without the code that made it: items whole, of the modalities asked for, then the end."""
    return lambda examples, outputs: [
        {"malformed": float(not is_well_formed(o.ids, e.to, model.config))}
        for e, o in zip(examples, outputs, strict=True)
    ]


def is_well_formed(reply: list[int], modalities: tuple[str, ...], config) -> bool:
    inside, codes = None, 0
    for token in reply:
        if inside is None:
            if token == config.eos_token_id:
                return True
            inside = next((m for m in config.modalities if token == m.start_token_id), None)
            if inside is not None:
                codes = 0
                if inside.name not in modalities:
                    return False
            elif any(token == m.end_token_id or 0 <= token - m.first_code_id < m.num_codes for m in config.modalities):
                return False
        elif token == inside.end_token_id:
            wanted = inside.codes_per_item
            if codes == 0 or codes % inside.num_codebooks or (wanted and codes != wanted):
                return False
            inside = None
        else:
            level = codes % inside.num_codebooks
            if not 0 <= token - inside.first_code_id - level * inside.codebook_size < inside.codebook_size:
                return False
            codes += 1
    return inside is None  # the budget may end a reply, never an item
