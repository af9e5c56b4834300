"""Speak the tiny world and turn it into speech codes for the language model.

  python train/make_speech_data.py --out data/speech --hours 5.3 --workers 2

Writes, all in one form (`codes` uint16 [8, sum T], `offsets` int64 [N+1], `voice` and `text` unicode [N]):
  codes_train.npz     training voices, sentences that are not held out, always at the same pace; one in four made
                      strange (another pace, resampled, tilted, noisy), its voice written as "flite_slt*1.07"; and
                      strangers to listen to (four minutes of each of `voices.HEARD_VOICES`, all made strange)
  codes_words.npz     training voices, words in no order (`language.sample_words`), a sixth as much as of sentences
  codes_heldout.npz   held-out sentences in the training voices and in two voices training never hears
  human_digits.npz    digit strings by a real speaker, joined from Asterisk's prompts (CC-BY-SA-3.0)
The last two also hold `sample_offsets` int64 [N+1] into the FLAC file of the same name, the audio for judges.
Work is cut into parts that are kept in DIR/parts: a second run, also one for more hours, does only what is missing.
"""

import argparse
import os
import random
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from settings import run_script

from processing_anygpt.files import write_npz, write_whole
from processing_anygpt.tiny_world import language, voices

RATE = voices.SAMPLING_RATE
PART_SECONDS = 240  # of unperturbed speech in one part
BUCKET = 640  # samples; lengths are padded to a multiple, so that utterances of one length can share a batch
BATCH = 8
UNSEEN = ("festival_ked", "joe")
HELD_OUT_RULES = (
    "picture_request",
    "picture",
    "tune_request",
    "tune",
    "speech_request",
    "everyday",
    "digits",
    "digits",
)
DIGITS = language.RULES["digit"]


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=5.3, help="of unperturbed training speech")
    parser.add_argument("--heard-rounds", type=int, default=1, help="times four minutes of every voice only heard")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--codec", default="modeling_anygpt/pretrained/anygpt_tiny/speech_codec")
    parser.add_argument("--asterisk", default="/usr/share/asterisk/sounds/en_US_f_Allison/digits", help="g722 prompts")
    parser.add_argument(
        "--only",
        choices=["train", "words", "heldout", "digits"],
        nargs="*",
        default=["train", "words", "heldout", "digits"],
    )
    args = parser.parse_args(words)
    if not 0 < args.hours < float("inf"):
        raise ValueError(f"--hours: got {args.hours}, allowed: above 0.")
    if args.heard_rounds < 0 or args.workers < 1:
        got = f"--heard-rounds: got {args.heard_rounds}, --workers: got {args.workers}"
        raise ValueError(f"{got}, allowed: 0 or more rounds and 1 or more workers.")
    digits = human_digits(args.asterisk, 40, f"{args.seed}-digits") if "digits" in args.only else []
    load_codec(args.codec)  # better now than after some minutes of speech
    (args.out / "parts").mkdir(parents=True, exist_ok=True)

    rounds = max(1, round(args.hours * 3600 / PART_SECONDS / len(voices.TRAINING_VOICES)))
    plan = {
        "train": [(voice, f"{args.seed}-{i}") for i in range(rounds) for voice in voices.TRAINING_VOICES]
        + [(voice, f"{args.seed}-{i}") for i in range(args.heard_rounds) for voice in voices.HEARD_VOICES],
        "words": [(v, f"{args.seed}-words-{i}") for i in range(-(-rounds // 6)) for v in voices.TRAINING_VOICES],
    }
    for name, jobs in plan.items():
        if name in args.only:
            sample = language.sample_words if name == "words" else language.sample_spoken
            speak_parts(args.out / f"codes_{name}.npz", [(*job, sample, args) for job in jobs], args.workers)

    if "heldout" in args.only:
        rng = random.Random(f"{args.seed}-heldout")
        texts = [language.sample(rule, rng, held_out=True) for _ in range(5) for rule in HELD_OUT_RULES]
        spoken = [(voices.say_at_pace(t, v), t, v) for v in voices.TRAINING_VOICES + UNSEEN for t in texts]
        save_with_audio(args.out / "codes_heldout", spoken, args.codec)

    if "digits" in args.only:
        save_with_audio(args.out / "human_digits", digits, args.codec)


def speak_parts(path: Path, jobs: list, workers: int) -> None:
    """All parts, made side by side, as one file."""
    parts = []
    with get_context("spawn").Pool(workers) as pool:
        for i, part in enumerate(pool.imap(make_part, jobs), 1):
            print(f"{i}/{len(jobs)} {part}", flush=True)
            parts.append(np.load(part))
    codes = [row for part in parts for row in split(part)]
    save_codes(path, codes, *(np.concatenate([part[name] for part in parts]) for name in ("text", "voice")))


def make_part(job) -> Path:
    """Four minutes of one voice, spoken and encoded -> path of the npz file."""
    voice, seed, sample, args = job
    path = args.out / "parts" / f"{voice}_{seed}.npz"
    if path.exists():
        return path
    torch.set_num_threads(1)
    rng, spoken, seconds = random.Random(f"{voice}-{seed}"), [], 0.0
    while seconds < PART_SECONDS:
        text = sample(rng)
        if language.is_held_out(text):
            continue
        pace, label = voices.PACE.get(voice, 1.0), voice
        # What is to be spoken is said in one way only: what varies by chance can be heard past, but not learnt to say.
        strange = voice in voices.HEARD_VOICES or len(spoken) % 4 == 3
        wave = voices.say(text, voice, pace * rng.uniform(0.88, 1.12) if strange else pace)
        if strange:
            wave, factor = as_of_a_stranger(wave, rng)
            label = f"{voice}*{factor}"
        spoken.append((wave, text, label))
        if not strange or voice in voices.HEARD_VOICES:
            seconds += len(wave) / RATE
    waves, texts, labels = zip(*spoken, strict=True)
    save_codes(path, encode(load_codec(args.codec), waves), texts, labels)
    return path


def as_of_a_stranger(wave: np.ndarray, rng: random.Random) -> tuple[np.ndarray, float]:
    """Another pitch and pace, another microphone, some noise: (float32 [T'], the resampling factor)."""
    factor = round(rng.uniform(0.85, 1.18), 2)
    wave = voices.to_16k(wave, round(RATE * factor))
    tilt = rng.uniform(-0.5, 0.5)  # a one-zero filter: negative lifts the low half of the spectrum, positive the high
    wave = wave - tilt * np.pad(wave, (1, 0))[:-1]
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(wave)).astype(np.float32)
    wave = wave + noise * np.sqrt((wave**2).mean()) * 10 ** (-rng.uniform(22, 45) / 20)  # 22 to 45 dB below the voice
    return (wave * (voices.PEAK / np.abs(wave).max())).astype(np.float32), factor


def load_codec(folder: str):
    import codec_files

    from modeling_anygpt.codecs.speech_tokenizer import SpeechTokenizerModel

    return codec_files.load_codec(SpeechTokenizerModel, folder)


@torch.no_grad()
def encode(codec, waves) -> list[np.ndarray]:
    """Waves (float32 [T] each) -> codes (uint16 [8, frames] each), in order; equal lengths share a batch."""
    buckets: dict[int, list[int]] = {}
    for i, wave in enumerate(waves):
        buckets.setdefault(-(-len(wave) // BUCKET) * BUCKET, []).append(i)
    codes = [None] * len(waves)
    for length, members in sorted(buckets.items()):
        for start in range(0, len(members), BATCH):
            chosen = members[start : start + BATCH]
            batch = np.stack([np.pad(waves[i], (0, length - len(waves[i]))) for i in chosen])
            for i, row in zip(chosen, codec.encode(torch.from_numpy(batch)), strict=True):  # row: [8, frames]
                codes[i] = row.numpy().astype(np.uint16)
    return codes


def human_digits(folder: str, count: int, seed: str) -> list[tuple[np.ndarray, str, str]]:
    """`count` strings of 3 to 5 digits by Allison Smith -> (float32 wave [T] at 16 kHz, words, "asterisk")."""
    paths = [f"{folder}/{i}.g722" for i in range(10)]
    if missing := [path for path in paths if not os.path.exists(path)]:
        raise FileNotFoundError(f"No {missing[0]}. Install it: apt-get install asterisk-core-sounds-en-g722")
    clips, rng = [voices.trim(voices.read_g722(path)) for path in paths], random.Random(seed)
    strings = [[rng.randrange(10) for _ in range(rng.randint(3, 5))] for _ in range(count)]
    return [(np.concatenate([clips[d] for d in s]), " ".join(DIGITS[d] for d in s), "asterisk") for s in strings]


def split(data) -> list[np.ndarray]:
    """The codes of every utterance of one npz file: uint16 [8, T] each."""
    return np.split(data["codes"], data["offsets"][1:-1], axis=1)


def save_codes(path: Path, codes, texts, labels, **more):
    write_npz(path, codes=np.concatenate(codes, axis=1), offsets=offsets(codes), text=texts, voice=labels, **more)
    frames = sum(c.shape[1] for c in codes)
    print(
        f"{path}: {len(codes)} utterances, {frames / 50 / 3600:.2f} h, {path.stat().st_size / 1e6:.1f} MB", flush=True
    )


def save_with_audio(path: Path, spoken, codec):
    import soundfile

    waves, texts, labels = zip(*spoken, strict=True)
    wave = np.concatenate(waves)
    write_whole(path.with_suffix(".flac"), lambda to: soundfile.write(to, wave, RATE, subtype="PCM_16", format="FLAC"))
    codes = encode(load_codec(codec), waves)
    save_codes(path.with_suffix(".npz"), codes, texts, labels, sample_offsets=offsets(waves))


def offsets(arrays) -> np.ndarray:
    """Where each array starts along its last axis once they are joined, and the end: int64 [N+1]."""
    return np.cumsum([0] + [a.shape[-1] for a in arrays])


if __name__ == "__main__":
    run_script(main)
