"""Held-out results of anygpt-tiny, by judges this project did not train where one exists.

  python train/make_speech_data.py --out data/speech --only heldout digits   # recordings; needs the voices' programs
  python eval/tiny.py --speech data/speech --sound-font TimGM6mb.sf2 --out results/tiny.json

Nothing judged here was seen in training: sentences, scenes and tunes whose words are held out by
`tiny_world.language.is_held_out`, and two voices never heard. Prints one markdown table and writes every item, so that
a number can be followed to what was said, drawn or played. `--tasks` picks some; `--items` scales all of them.

Judges: pocketsphinx (words), Resemblyzer (whose voice), DNSMOS (quality), pixels against rendered references
(pictures), basic-pitch and librosa (notes, tempo). The instrument judge alone is fitted by us, on originals.
Needs: pip install anygpt-hf[eval]; see CONTRIBUTING.md for the programs and the sound font.
"""

import argparse
import functools
import json
import os
import random
import time
from collections import defaultdict
from pathlib import Path

import judge_music
import judge_speech
import numpy as np
import soundfile
import torch
from transformers import AutoModelForCausalLM, AutoProcessor

import processing_anygpt  # noqa: F401  registers the classes
from processing_anygpt.conversation import render
from processing_anygpt.tiny_world import language, pictures, tunes, voices

RATE = 16_000  # Hz, speech and music of the tiny world
BATCH = 32
GRAMMAR_TOKENS = 200  # budget of the malformed-output test: less than a tune takes, so it must be closed early


class Subject:
    """The checkpoint under test: batches of conversations in, parts out."""

    def __init__(self, folder: str):
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def encode(self, modality: str, media: list) -> list[np.ndarray]:
        """Waves [T] at RATE or PIL images -> codes [K, T] each, as the language model sees them."""
        return self.processor.encode_media(modality, media, sampling_rate=None if modality == "image" else RATE)

    @torch.inference_mode()
    def answer(self, contents: list[list], modalities: tuple[str, ...], required: tuple[str, ...] = (), **options):
        """User contents (blocks; a bare string is text) -> the ids of each reply, in order; batched by length.

        `options` are those of `generate`."""
        options = {"max_new_tokens": 700} | options
        replies = [None] * len(contents)
        prompts = [self._prompt(content) for content in contents]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            padded = self.processor.tokenizer.pad(
                {"input_ids": [prompts[i] for i in chosen]}, padding=True, padding_side="left", return_tensors="pt"
            )
            output = self.model.generate(
                **padded, output_modalities=modalities, required_modalities=required, **options
            )
            for i, row in zip(chosen, output[:, padded["input_ids"].shape[1] :], strict=True):
                replies[i] = row.tolist()
        return replies

    def _prompt(self, content) -> list[int]:
        blocks = [{"type": "text", "text": b} if isinstance(b, str) else b for b in content]
        message = {"role": "user", "content": blocks}
        return render([message], self.processor.tokenizer, self.processor.specs, add_generation_prompt=True)[0]

    def parse(self, reply: list[int], voice: np.ndarray | None = None) -> dict:
        """{modality: first part of it} of a reply."""
        parts = {}
        for part in self.processor.parse_output(reply, voice=None if voice is None else (voice, RATE)):
            parts.setdefault(part.modality, part)
        return parts


def block(modality: str, codes: np.ndarray) -> dict:
    return {"type": modality, "codes": codes}


class Recordings:
    """A .npz of make_speech_data.py with its audio: equal lists `text`, `voice`, `wave`."""

    def __init__(self, stem: Path):
        table = np.load(stem.with_suffix(".npz"))
        audio, _ = soundfile.read(stem.with_suffix(".flac"), dtype="float32")
        self.wave = np.split(audio, table["sample_offsets"][1:-1])
        self.text, self.voice = table["text"].tolist(), table["voice"].tolist()

    def of(self, *names: str) -> list[int]:
        return [i for i, voice in enumerate(self.voice) if voice in names]


class Report:
    def __init__(self):
        self.rows, self.items = [], defaultdict(list)

    def add(self, task: str, judge: str, value: float, count: int, bar: str = ""):
        self.rows.append({"task": task, "judge": judge, "value": round(float(value), 4), "items": count, "bar": bar})
        print(f"| {task} | {judge} | {value:.3f} | {count} | {bar} |", flush=True)


# ---------------------------------------------------------------- tasks


def asr(subject: Subject, speech: Recordings, digits: Recordings, report: Report, scale: float):
    groups = [("training voices", speech, voices.TRAINING_VOICES, "<= 0.03")]
    groups += [(f"voice never heard: {name}", speech, (name,), "<= 0.15") for name in ("festival_ked", "joe")]
    groups += [("human digits", digits, ("asterisk",), "")]
    for name, source, who, bar in groups:
        chosen = source.of(*who)[:: max(1, round(1 / scale))]
        codes = subject.encode("speech", [source.wave[i] for i in chosen])
        replies = subject.answer([["write down what you hear", block("speech", c)] for c in codes], ("text",))
        heard = [text_of(subject, reply) for reply in replies]
        said = [source.text[i] for i in chosen]
        report.items["asr"] += [
            {"group": name, "voice": source.voice[i], "said": s, "heard": h}
            for i, s, h in zip(chosen, said, heard, strict=True)
        ]
        report.add(f"ASR, {name}", "word error rate", judge_speech.word_error_rate(said, heard), len(chosen), bar)


def text_of(subject: Subject, reply: list[int]) -> str:
    part = subject.parse(reply).get("text")
    return part.text.strip() if part else ""


def tts(subject: Subject, speech: Recordings, report: Report, scale: float):
    """Each held-out sentence in each training voice, given three seconds of that voice saying something else."""
    chosen = speech.of(*voices.TRAINING_VOICES)[:: max(1, round(2 / scale))]
    rng = random.Random(0)
    prompts = [voice_prompt(speech, i, rng) for i in chosen]
    heads = subject.encode("speech", [p[:RATE] for p in prompts])
    said = [speech.text[i] for i in chosen]
    contents = [[block("speech", h), f"read this aloud {t}"] for h, t in zip(heads, said, strict=True)]
    replies = subject.answer(contents, ("speech",), ("speech",))
    made = [subject.parse(reply, prompt)["speech"].waveform for reply, prompt in zip(replies, prompts, strict=True)]
    copies = reconstruct(subject, [speech.wave[i] for i in chosen])
    judge_spoken(made, copies, said, [speech.voice[i] for i in chosen], speech, report)


def judge_spoken(made, copies, said, voices_asked, speech: Recordings, report: Report):
    """Words, voice and quality of what was `made`, beside `copies`: the same sentences through the codec alone."""
    errors = {}
    for source, waves in (("made", made), ("copy", copies)):
        for kind in ("closed", "open"):
            heard = [judge_speech.transcribe(wave, kind) for wave in waves]
            errors[source, kind] = judge_speech.word_error_rate(said, heard)
            report.items["tts"] += [
                {"wave": source, "judge": kind, "voice": v, "said": s, "heard": h}
                for v, s, h in zip(voices_asked, said, heard, strict=True)
            ]
    count = len(said)
    report.add("TTS", "pocketsphinx closed grammar, WER", errors["made", "closed"], count, "<= 0.08")
    report.add("the same of codec-reconstructed recordings", "the same", errors["copy", "closed"], count)
    extra = errors["made", "open"] - errors["copy", "open"]
    report.add("TTS, above codec-reconstructed recordings", "pocketsphinx open, WER", extra, count, "<= 0.10")
    known = speech.of(*voices.TRAINING_VOICES)
    centroids = judge_speech.voice_centroids([speech.wave[i] for i in known], [speech.voice[i] for i in known])
    right = {
        source: np.mean(
            [judge_speech.nearest_voice(w, centroids) == v for w, v in zip(waves, voices_asked, strict=True)]
        )
        for source, waves in (("made", made), ("copy", copies))
    }
    report.add("voice cloning, prompt's speaker is nearest", "Resemblyzer", right["made"], count,
               f">= {0.9 * right['copy']:.2f}")  # fmt: skip
    report.add("the same of codec-reconstructed recordings", "Resemblyzer", right["copy"], count)
    for source, waves in (("TTS", made), ("codec-reconstructed recordings", copies)):
        report.add(f"quality of {source}", "DNSMOS overall", np.mean([judge_speech.dnsmos(w) for w in waves]), count)


def voice_prompt(speech: Recordings, item: int, rng: random.Random) -> np.ndarray:
    """Up to 3 s of other recordings of the item's voice."""
    others = [i for i in speech.of(speech.voice[item]) if speech.text[i] != speech.text[item]]
    return np.concatenate([speech.wave[i] for i in rng.sample(others, 3)])[: 3 * RATE]


def reconstruct(subject: Subject, waves: list[np.ndarray]) -> list[np.ndarray]:
    """Through the speech codec with all its codebooks, no language model."""
    from processing_anygpt import codec_io

    codec = subject.processor.codec("speech")
    copies = codec_io.decode(codec, codec_io.encode(codec, waves))
    return [copy[: len(wave)] for copy, wave in zip(copies, waves, strict=True)]


def speech_codec(subject: Subject, speech: Recordings, report: Report, scale: float):
    chosen = speech.of(*voices.TRAINING_VOICES)[:: max(1, round(5 / scale))]
    waves = [speech.wave[i] for i in chosen]
    for name, group in (("original", waves), ("reconstructed", reconstruct(subject, waves))):
        score = np.mean([judge_speech.dnsmos(wave) for wave in group])
        report.add(f"speech codec, {name}", "DNSMOS overall", score, len(chosen))


def scenes(count: int) -> list[language.Scene]:
    """Held-out scenes, as many of one, two and three things."""
    rng = random.Random(1)
    kinds = ["single", "pair", "row"]
    return [language.parse_scene(language.sample(kinds[i % 3], rng, held_out=True)) for i in range(count)]


def images(subject: Subject, report: Report, scale: float):
    wanted = scenes(round(150 * scale))
    rng = random.Random(2)
    codes = subject.encode("image", [pictures.draw(scene, rng) for scene in wanted])
    copies = subject.processor.decode_codes("image", codes)
    kept = [pictures.matches(copy.image, scene) for copy, scene in zip(copies, wanted, strict=True)]
    report.add("image codec alone, every attribute kept", "pixels", np.mean(kept), len(kept))
    replies = subject.answer([["describe this picture", block("image", c)] for c in codes], ("text",))
    right = []
    for scene, reply in zip(wanted, replies, strict=True):
        said = text_of(subject, reply)
        right.append(same_scene(said, scene))
        report.items["caption"].append({"scene": language.scene_caption(scene), "said": said, "right": right[-1]})
    report.add("image captioning, every attribute right", "exact words", np.mean(right), len(right), ">= 0.95")

    captions = [language.scene_caption(scene) for scene in wanted]
    replies = subject.answer([[f"draw {caption}"] for caption in captions], ("image",), ("image",))
    right = [picture_is(subject, reply, scene) for reply, scene in zip(replies, wanted, strict=True)]
    report.items["draw"] += [{"caption": c, "right": r} for c, r in zip(captions, right, strict=True)]
    report.add("text-to-image, every attribute right", "pixels", np.mean(right), len(right), ">= 0.90")


def same_scene(said: str, scene: language.Scene) -> bool:
    try:
        return pictures.canonical(language.parse_scene(said)) == pictures.canonical(scene)
    except ValueError:
        return False


def picture_is(subject: Subject, reply: list[int], scene: language.Scene) -> bool:
    part = subject.parse(reply).get("image")
    return part is not None and pictures.matches(part.image, scene)


@functools.cache
def instrument_judge(sound_font: str) -> judge_music.InstrumentJudge:
    """Fitted once a run: it renders some hundred clips."""
    return judge_music.InstrumentJudge(sound_font)


def music(subject: Subject, report: Report, scale: float, sound_font: str):
    captions = [c for c in judge_music.tune_captions() if language.is_held_out(c)]
    rng = random.Random(3)
    wanted = [language.parse_tune(captions[i % len(captions)]) for i in range(round(4 * len(captions) * scale))]
    originals = [tunes.render(tunes.notes(t, rng), t.instrument, sound_font) for t in wanted]
    codes = subject.encode("music", originals)
    copies = [part.waveform for part in subject.processor.decode_codes("music", codes)]
    instrument = instrument_judge(sound_font)
    heard = {
        name: [judge_music.judge(wave, RATE, instrument) for wave in waves]
        for name, waves in (("original", originals), ("copy", copies))
    }
    f1 = [judge_music.note_f1(o["notes"], c["notes"]) for o, c in zip(heard["original"], heard["copy"], strict=True)]
    report.add("music codec alone", "basic-pitch note F1", np.mean(f1), len(f1), ">= 0.60")

    replies = subject.answer([["describe this tune", block("music", c)] for c in codes], ("text",))
    said = []
    for tune, reply in zip(wanted, replies, strict=True):
        words = text_of(subject, reply)
        report.items["describe"].append({"tune": language.tune_caption(tune), "said": words})
        try:
            said.append(vars(language.parse_tune(words)))
        except ValueError:
            said.append({})
    for field in ("instrument", "tempo", "mode", "contour"):
        right = np.mean([s.get(field) == getattr(t, field) for s, t in zip(said, wanted, strict=True)])
        report.add(f"music captioning, {field}", "exact word", right, len(wanted), ">= 0.95")

    replies = subject.answer([[f"play {language.tune_caption(t)}"] for t in wanted], ("music",), ("music",))
    made = [judge_music.judge(subject.parse(r)["music"].waveform, RATE, instrument) for r in replies]
    for field in ("instrument", "tempo", "mode", "contour"):
        right = {
            name: np.mean([h[field] == getattr(t, field) for h, t in zip(group, wanted, strict=True)])
            for name, group in (("made", made), ("copy", heard["copy"]))
        }
        bar = f">= {0.9 * right['copy']:.2f}"
        report.add(f"text-to-music, {field}", "basic-pitch, librosa, MFCC", right["made"], len(wanted), bar)
        report.add("the same of codec-reconstructed tunes", "the same", right["copy"], len(wanted))
    report.items["play"] += [
        {"caption": language.tune_caption(t)} | {k: m[k] for k in ("instrument", "tempo", "mode", "contour")}
        for t, m in zip(wanted, made, strict=True)
    ]


def spoken_requests(subject: Subject, speech: Recordings, report: Report, scale: float, sound_font: str):
    """Held-out requests in the training voices: a picture, a tune or a sentence aloud."""
    mine = speech.of(*voices.TRAINING_VOICES)[:: max(1, round(1 / scale))]
    kinds = {"image": [], "music": [], "speech": []}
    for i in mine:
        inner = language.core(speech.text[i])
        if inner == speech.text[i]:
            continue
        kinds["speech" if speech.text[i].startswith("say ") else "music" if " tune on " in inner else "image"].append(
            i
        )
    instrument = instrument_judge(sound_font)
    for kind, chosen in kinds.items():
        codes = subject.encode("speech", [speech.wave[i] for i in chosen])
        replies = subject.answer([[block("speech", c)] for c in codes], ("text", kind), (kind,))
        right, spoken = [], []
        for i, reply in zip(chosen, replies, strict=True):
            inner = language.core(speech.text[i])
            part = subject.parse(reply, speech.wave[i] if kind == "speech" else None).get(kind)
            if kind == "image":
                right.append(part is not None and pictures.matches(part.image, language.parse_scene(inner)))
            elif kind == "music":
                tune = language.parse_tune(inner)
                heard = judge_music.judge(part.waveform, RATE, instrument) if part else {}
                right.append(all(heard.get(f) == getattr(tune, f) for f in ("instrument", "tempo", "mode")))
            else:
                spoken.append((inner, judge_speech.transcribe(part.waveform) if part else ""))
                right.append(spoken[-1][0] == spoken[-1][1])
            report.items["spoken"].append({"said": speech.text[i], "kind": kind, "right": bool(right[-1])})
        report.add(f"spoken request -> {kind}, all right", "as above", np.mean(right), len(right), ">= 0.85")
        if spoken:
            said, heard = zip(*spoken, strict=True)
            report.add("the same, word error rate", "pocketsphinx closed grammar",
                       judge_speech.word_error_rate(list(said), list(heard)), len(said))  # fmt: skip


def grammar(subject: Subject, report: Report, scale: float):
    """Sampled at temperature 1.5 under every choice of modalities: what is malformed or was not asked for."""
    names = [spec.name for spec in subject.processor.specs]
    rng = random.Random(4)
    count, bad = round(1000 * scale), 0
    choices = [("text",), *((n,) for n in names), *(("text", n) for n in names), ("text", *names)]
    per_choice = -(-count // len(choices))
    torch.manual_seed(0)
    for modalities in choices:
        prompts = [[language.expand(rng.choice(["picture_request", "tune_request", "speech_request"]), rng)]
                   for _ in range(per_choice)]  # fmt: skip
        sampling = {"do_sample": True, "temperature": 1.5, "top_k": 0, "top_p": 1.0, "max_new_tokens": GRAMMAR_TOKENS}
        for reply in subject.answer(prompts, modalities, **sampling):
            bad += not well_formed(reply, modalities, subject)
    report.add(
        "malformed or wrong-modality outputs at temperature 1.5", "grammar", bad, per_choice * len(choices), "0"
    )


def well_formed(reply: list[int], modalities: tuple[str, ...], subject: Subject) -> bool:
    """Read token by token, without the code that made it: items whole, of the modalities asked for, then the end."""
    config = subject.model.config
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


TASKS = ("asr", "tts", "speech_codec", "images", "music", "spoken", "grammar")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parents[1] / "modeling_anygpt/pretrained/anygpt_tiny"))
    parser.add_argument("--speech", type=Path, required=True, help="folder with codes_heldout and human_digits")
    parser.add_argument("--sound-font", default="/usr/share/sounds/sf2/TimGM6mb.sf2")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=TASKS)
    parser.add_argument("--items", type=float, default=1.0, help="scales the number of items of every task")
    parser.add_argument("--out", type=Path, required=True, help="JSON with the table and every item")
    args = parser.parse_args()
    subject, report, began = Subject(args.model), Report(), time.time()
    speech, digits = Recordings(args.speech / "codes_heldout"), Recordings(args.speech / "human_digits")
    run = {
        "asr": lambda: asr(subject, speech, digits, report, args.items),
        "tts": lambda: tts(subject, speech, report, args.items),
        "speech_codec": lambda: speech_codec(subject, speech, report, args.items),
        "images": lambda: images(subject, report, args.items),
        "music": lambda: music(subject, report, args.items, args.sound_font),
        "spoken": lambda: spoken_requests(subject, speech, report, args.items, args.sound_font),
        "grammar": lambda: grammar(subject, report, args.items),
    }
    print("| task | judge | value | items | bar |\n|---|---|---|---|---|")
    for task in args.tasks:
        run[task]()
        args.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = args.out.with_suffix(".tmp")
        temporary.write_text(json.dumps({"rows": report.rows, "items": report.items}, indent=1))
        os.replace(temporary, args.out)
    print(f"{time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
