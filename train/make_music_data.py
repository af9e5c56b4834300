"""Render tunes of the tiny world: clips to train the music codec on, or codes to train a language model on.

    python train/make_music_data.py --sound-font TimGM6mb.sf2 --clips 2400 --out data/music
    python train/make_music_data.py --sound-font TimGM6mb.sf2 --clips 6000 --out data/music --codec music_codec

The first writes OUT/clips_000.npy ... int16 [N, 80000], 5 s clips at 16 kHz, up to 300 (48 MB) in a file. Captions are
those of the training side of the split (`language.is_held_out`): the codec has not heard the held-out combinations.
The second writes OUT/codes_train.npz (`codes` uint16 [N, 2, 125], `caption` and `tonic`, MIDI, [N]; some
are such as only training holds), OUT/codes_heldout.npz, the same for 200 clips of held-out captions, and
OUT/notes_heldout.json, the notes [[onset s, offset s, pitch], ...] of each.
Needs tinysoundfont (pip install tinysoundfont) and a General MIDI sound font (Debian: timgm6mb-soundfont).
"""

import argparse
import io
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from settings import run_script

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout too

from processing_anygpt.files import write_npz, write_text, write_whole  # noqa: E402
from processing_anygpt.tiny_world import language, tunes  # noqa: E402

CLIPS_PER_FILE = 300
HELD_OUT_CLIPS = 200


def render_clip(
    rng: random.Random, sound_font: str, held_out: bool = False, tonic: int | None = None, others: bool = False
) -> tuple[np.ndarray, str, list]:
    """One random clip: float32 [80000], its caption, its notes. `tonic`: MIDI pitch of its key, None draws one.
    `others`: with properties that only training holds."""
    tune = language.parse_tune(other_tune(rng) if others else language.sample("tune", rng, held_out))
    notes = tunes.notes(tune, rng, tonic)
    return tunes.render(notes, tune.instrument, sound_font), language.tune_caption(tune), notes


def other_tune(rng: random.Random) -> str:
    """A caption in which every property is one that only training holds or not, but not all as in the exam."""
    while True:
        tune = language.parse_tune(language.expand("tune", rng))
        more = {name: rng.choice(words) for name, words in language.MORE_TUNES.items() if rng.random() < 0.4}
        if more:
            return language.tune_caption(replace(tune, **more))


def write_clips(args: argparse.Namespace, rng: random.Random) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    for first in range(0, args.clips, CLIPS_PER_FILE):
        count = min(CLIPS_PER_FILE, args.clips - first)
        clips = np.stack([render_clip(rng, args.sound_font)[0] for _ in range(count)])
        path = args.out / f"clips_{first // CLIPS_PER_FILE:03d}.npy"
        buffer = io.BytesIO()
        np.save(buffer, np.round(clips * 32767).astype(np.int16))
        write_whole(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))
        print(f"{path}: {count} clips", flush=True)


def write_codes(args: argparse.Namespace, rng: random.Random) -> None:
    import torch
    from codec_files import load_codec

    from modeling_anygpt.codecs.spectral import SpectralCodecModel

    torch.set_num_threads(1)
    codec = load_codec(SpectralCodecModel, args.codec)
    args.out.mkdir(parents=True, exist_ok=True)
    in_c = tunes.TONICS[0]
    for name, held_out, kinds in (
        ("heldout", True, [(None, False)] * HELD_OUT_CLIPS),
        (
            "train",
            False,
            [(None, False)] * args.clips + [(in_c, False)] * args.clips_in_c + [(in_c, True)] * args.clips_on_others,
        ),
    ):
        codes, captions, scores, tonics = [], [], [], []
        for key, others in kinds:
            audio, caption, notes = render_clip(rng, args.sound_font, held_out, key, others)
            with torch.inference_mode():
                codes.append(codec.encode(torch.from_numpy(audio)[None])[0].numpy().astype(np.uint16))
            captions.append(caption)
            scores.append(notes)
            tonics.append(min(pitch for _, _, pitch in notes))  # a melody never goes below its tonic
        arrays = {"codes": np.stack(codes), "caption": np.array(captions), "tonic": np.array(tonics, dtype=np.uint8)}
        write_npz(args.out / f"codes_{name}.npz", **arrays)
        if held_out:
            write_text(args.out / "notes_heldout.json", json.dumps(scores))
        print(
            f"{name}: {len(kinds)} clips, {[len(np.unique(arrays['codes'][:, k])) for k in range(2)]} codes used",
            flush=True,
        )


def check_sound_font(path: str) -> None:
    """Before any work: ValueError, OSError or ImportError if no tune can be played with this sound font."""
    try:
        tunes.render([], "piano", path)
    except RuntimeError as error:
        raise ValueError(f"{path} is no sound font. Give the path of a General MIDI .sf2 file.") from error


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sound-font", required=True)
    parser.add_argument("--clips", type=int, default=2400)
    parser.add_argument("--clips-in-c", type=int, default=0, help="more of them, for --codec: those to be played")
    parser.add_argument("--clips-on-others", type=int, default=0, help="more in C, such as only training holds")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--codec", help="folder of a music codec: write its codes instead of clips")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    for name, least in (("clips", 1), ("clips_in_c", 0), ("clips_on_others", 0)):
        if getattr(args, name) < least:
            option = name.replace("_", "-")
            raise ValueError(f"--{option}: got {getattr(args, name)}, allowed: {least} or more.")
    if not args.codec and (args.clips_in_c or args.clips_on_others):
        raise ValueError("--clips-in-c and --clips-on-others go with --codec: a codec learns from --clips.")
    check_sound_font(args.sound_font)
    write = write_codes if args.codec else write_clips
    write(args, random.Random(args.seed))


if __name__ == "__main__":
    run_script(main)
