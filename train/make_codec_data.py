"""Make the training audio of the speech codec, with the phone spoken in each 20 ms frame.

  python train/make_codec_data.py --out data/speech_codec --minutes 10 --workers 2 \\
      --asterisk /usr/share/asterisk/sounds/en_US_f_Allison
  python train/make_codec_data.py --out data/my_voice --minutes 0 --recordings ~/recordings

A third sentences of the tiny world (none held out), two thirds random words of pocketsphinx's dictionary, so that
every phone meets every other; spoken by the five training voices at random speeds. Phones come from pocketsphinx's
forced alignment; three in four frames get one. -1 marks the others, all Asterisk prompts, a real speaker (four in five
are used), and your own recordings. Shards of speech that are in OUT already are not made again.

Writes clips_*.npz: `audio` int16 [F * 320] at 16 kHz, clips end to end, each padded to whole frames, and `phones`
int8 [F].
"""

import argparse
import functools
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from settings import run_script

from processing_anygpt.files import write_npz
from processing_anygpt.media import load_audio
from processing_anygpt.tiny_world import language, voices

HOP = 320  # samples in a frame
SHARD_SECONDS = 600  # about 15 MB
LONGEST = 36_000  # s of one recording
RECORDINGS = (".wav", ".flac", ".ogg", ".mp3")
PHONES = (
    "SIL AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"
).split()


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10, help="per voice (default: 10)")
    parser.add_argument("--voices", nargs="*", default=voices.TRAINING_VOICES, choices=voices.VOICES, metavar="VOICE",
                        help="of processing_anygpt.tiny_world (default: %(default)s)")  # fmt: skip
    parser.add_argument("--asterisk", type=Path, help="folder of g722 prompts, searched with its subfolders")
    parser.add_argument("--recordings", type=Path, help="folder of wav, flac, ogg, mp3, with its subfolders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(words)
    if not 0 <= args.minutes < float("inf"):
        raise ValueError(f"--minutes: got {args.minutes}, allowed: 0 or more.")
    if not args.minutes and not args.asterisk and not args.recordings:
        raise ValueError("--minutes: got 0, which makes nothing. Give --asterisk or --recordings, or some minutes.")
    if args.workers < 1:
        raise ValueError(f"--workers: got {args.workers}, allowed: 1 or more.")
    shards = int(-(-args.minutes * 60 // SHARD_SECONDS))
    jobs = [
        (voice, f"{args.seed}-{i}", args.minutes * 60 / shards, args.out)
        for i in range(shards)
        for voice in args.voices
    ]
    prompts = found(args.asterisk, (".g722",), "apt-get install asterisk-core-sounds-en-g722")
    recordings = found(args.recordings, RECORDINGS, "give the folder that holds them")
    args.out.mkdir(parents=True, exist_ok=True)
    # Not multiprocessing's Pool: if a worker crashes, that waits for ever.
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        for line in pool.map(make_shard, jobs):
            print(line, flush=True)
    if prompts:
        random.Random(args.seed).shuffle(prompts)
        clips = [voices.trim(voices.read_g722(str(path))) for path in prompts[len(prompts) // 5 :]]
        print(save(args.out / "clips_asterisk.npz", [(to_frames(clip), None) for clip in clips if clip.size]))
    if recordings:
        waves = (load_audio(path, voices.SAMPLING_RATE, max_seconds=LONGEST) for path in recordings)
        clips = [voices.trim(wave) for wave in waves]
        print(save(args.out / "clips_recordings.npz", [(to_frames(clip), None) for clip in clips if clip.size]))


def found(folder: Path | None, suffixes: tuple[str, ...], advice: str) -> list[Path]:
    """Files of a folder that was asked for."""
    if folder is None:
        return []
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    if not paths:
        raise ValueError(f"No {', '.join(suffixes)} in {folder}: {advice}.")
    return paths


def make_shard(job) -> str:
    """`seconds` of one voice, spoken and aligned; skipped if it is there already."""
    voice, seed, seconds, out = job
    path = out / f"clips_{voice}_{seed}.npz"
    if path.exists():
        return f"{path}: there already"
    rng, clips, total = random.Random(f"{voice}-{seed}"), [], 0.0
    while total < seconds:
        if rng.random() < 1 / 3:
            text = language.sample(rng.choice(list(language.SPOKEN_MIX)), rng)
        else:
            text = " ".join(rng.choices(dictionary_words(), k=rng.randint(4, 9)))
        audio = to_frames(voices.say(text, voice, rng.uniform(0.87, 1.2)))
        clips.append((audio, align(audio, text)))
        total += len(audio) / voices.SAMPLING_RATE
    return save(path, clips)


def to_frames(wave: np.ndarray) -> np.ndarray:
    """float32 [T] -> int16, padded to whole frames."""
    return np.pad(np.round(wave * 32767).astype(np.int16), (0, -len(wave) % HOP))


@functools.cache
def dictionary_words() -> list[str]:
    """Plain words of three letters or more that pocketsphinx can pronounce."""
    import pocketsphinx

    with open(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict")) as file:
        words = [line.split(maxsplit=1)[0] for line in file if line.strip()]
    return [word for word in words if word.isalpha() and word.isascii() and len(word) > 2]


@functools.cache
def _aligner():
    from pocketsphinx import Decoder

    return Decoder(lm=None, loglevel="FATAL", cmn="batch")


def align(audio: np.ndarray, text: str) -> np.ndarray | None:
    """Phone of each frame of audio int16 [F * 320] -> int8 [F] of indices of `PHONES`; None if it does not align."""
    aligner = _aligner()
    aligner.set_align_text(text)
    _hear(aligner, audio)
    if aligner.hyp() is None:
        return None
    aligner.set_alignment()  # a second pass, from words to phones; asking for its `hyp` crashes pocketsphinx 5.1.1
    try:
        _hear(aligner, audio)
    except RuntimeError:  # a word that the first pass found is too short for its phones
        return None
    halves = np.full(2 * len(audio) // HOP, -1, np.int8)  # pocketsphinx counts in 10 ms
    for word in aligner.get_alignment():
        for phone in word:
            # Noises such as breath are silence to us.
            label = PHONES.index(phone.name) if phone.name in PHONES else 0
            halves[phone.start : phone.start + phone.duration] = label
    return halves[::2]


def hear_words(audio: np.ndarray, words: list[str]) -> list[float] | None:
    """Seconds at which `words` begin in audio int16 [T]; None if they, and no others, are not found in it."""
    aligner = _aligner()
    try:
        aligner.set_align_text(" ".join(words))
    except RuntimeError:  # a word that the dictionary does not have
        return None
    _hear(aligner, audio)
    heard = [(entry.word.partition("(")[0], entry.start_frame / 100) for entry in aligner.seg() or ()]
    heard = [(word, second) for word, second in heard if word[:1] not in ("<", "[", "")]  # silences and noises
    return [second for _, second in heard] if [word for word, _ in heard] == words else None


def _hear(aligner, audio: np.ndarray) -> None:
    aligner.start_utt()
    aligner.process_raw(audio.tobytes(), full_utt=True)
    aligner.end_utt()


def save(path: Path, clips) -> str:
    """Write (audio int16 [F * 320], phones int8 [F] or None) pairs as one shard -> a line that says what it holds."""
    if not clips:
        raise ValueError(f"No sound for {path}: all of its recordings are silent.")
    audio = np.concatenate([audio for audio, _ in clips])
    unknown = [np.full(len(audio) // HOP, -1, np.int8) if phones is None else phones for audio, phones in clips]
    phones = np.concatenate(unknown)
    write_npz(path, audio=audio, phones=phones)
    minutes = len(audio) / voices.SAMPLING_RATE / 60
    return f"{path}: {len(clips)} clips, {minutes:.1f} min, {(phones >= 0).mean():.2f} of the frames labelled"


if __name__ == "__main__":
    run_script(main)
