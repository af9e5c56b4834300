"""Judges of tunes: what a clip of the tiny world plays, and how much of it a music codec keeps.

    python eval/judge_music.py --sound-font TimGM6mb.sf2 --codec modeling_anygpt/pretrained/anygpt_tiny/music_codec

- Notes: basic-pitch (Bittner et al. 2022, Spotify; weights inside its wheel), settings chosen once on originals.
- Mode and contour follow from these notes; tempo from librosa's onset detector.
- Instrument: a logistic regression on librosa's MFCC statistics. This one is fitted by us, on original
  renders of training captions only; it never sees the output of a codec or of a language model.

Needs basic-pitch with onnxruntime, librosa and scikit-learn, and tinysoundfont for the originals.
"""

import argparse
import contextlib
import io
import logging
import math
import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
from console import run_script

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout too

from processing_anygpt.tiny_world import language, tunes  # noqa: E402

Note = tuple[float, float, int]  # onset s, offset s, MIDI pitch


@contextlib.contextmanager
def _quiet():
    """basic-pitch prints and warns of the runtimes it was not installed with."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@lru_cache(maxsize=1)
def _basic_pitch():
    with _quiet():
        from basic_pitch import FilenameSuffix, build_icassp_2022_model_path
        from basic_pitch.inference import Model

        return Model(build_icassp_2022_model_path(FilenameSuffix.onnx))


def notes(audio: np.ndarray, sampling_rate: int) -> list[Note]:
    """Notes that basic-pitch hears in mono audio [T], in order of onset.

    Only between B3 and G#5, the tiny world's range and a semitone more, so that overtones are not taken for notes.
    """
    return list(_notes(np.asarray(audio, np.float32).tobytes(), sampling_rate))


@lru_cache(maxsize=256)  # half a second each; two judges ask for the same clip, and again for the next system
def _notes(samples: bytes, sampling_rate: int) -> tuple[Note, ...]:
    model = _basic_pitch()
    with _quiet(), tempfile.NamedTemporaryFile(suffix=".wav") as file:  # its public function reads files only
        from basic_pitch.inference import predict

        soundfile.write(file.name, np.frombuffer(samples, np.float32), sampling_rate)
        events = predict(file.name, model, onset_threshold=0.6, minimum_frequency=240, maximum_frequency=840)[2]
    return tuple(sorted((float(onset), float(offset), int(pitch)) for onset, offset, pitch, *_ in events))


def note_f1(reference: list[Note], estimate: list[Note], tolerance: float = 0.05) -> float:
    """F1 of notes with equal pitch and onsets within `tolerance` s, one to one (as mir_eval counts). 0 to 1."""
    free = sorted(estimate)
    hits = 0
    for onset, _, pitch in sorted(reference):
        match = next((n for n in free if n[2] == pitch and abs(n[0] - onset) <= tolerance), None)
        if match:
            free.remove(match)
            hits += 1
    return 2 * hits / (len(reference) + len(estimate)) if reference or estimate else 1.0


def tempo(audio: np.ndarray, sampling_rate: int) -> str | None:
    """Tempo word nearest (in ratio) to the median time between onsets; None with fewer than two onsets."""
    import librosa

    onsets = librosa.onset.onset_detect(y=audio, sr=sampling_rate, hop_length=256, units="time")
    if len(onsets) < 2:
        return None
    gap = float(np.median(np.diff(onsets)))
    return min(tunes.TEMPOS, key=lambda word: abs(math.log(gap / tunes.TEMPOS[word])))


def mode(heard: list[Note]) -> str | None:
    """Happy (major) or sad (minor) by thirds, sixths and sevenths above the first note; None on a tie."""
    if not heard:
        return None
    intervals = [(pitch - heard[0][2]) % 12 for _, _, pitch in heard]
    major, minor = (sum(i in scale for i in intervals) for scale in ({4, 9, 11}, {3, 8, 10}))
    return None if major == minor else "happy" if major > minor else "sad"


def contour(heard: list[Note]) -> str | None:
    """Up or down if the last note lies half an octave above or below the first; None without notes."""
    if not heard:
        return None
    rise = heard[-1][2] - heard[0][2]
    return "up" if rise >= 6 else "down" if rise <= -6 else "up and down"


class InstrumentJudge:
    """Logistic regression on MFCC statistics, fitted on `per_caption` original renders of every training caption.

    `through`: what every clip goes through before, for example a codec that alters what it has never met.
    """

    def __init__(
        self,
        sound_font: str,
        per_caption: int = 3,
        seed: int = 7,
        through: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        rng = random.Random(seed)
        captions = [c for c in tune_captions() if not language.is_held_out(c)] * per_caption
        features, labels = [], []
        for caption in captions:
            tune = language.parse_tune(caption)
            audio = tunes.render(tunes.notes(tune, rng), tune.instrument, sound_font)
            features.append(self.features(through(audio) if through else audio, tunes.SAMPLING_RATE))
            labels.append(tune.instrument)
        self.classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        self.classifier.fit(features, labels)

    @staticmethod
    def features(audio: np.ndarray, sampling_rate: int) -> np.ndarray:
        """[26]: means and deviations of 13 MFCC; the first one, loudness, has no mean."""
        import librosa

        mfcc = librosa.feature.mfcc(y=audio, sr=sampling_rate, n_mfcc=13, hop_length=256)
        mean = mfcc.mean(1)
        mean[0] = 0
        return np.concatenate([mean, mfcc.std(1)])

    def __call__(self, audio: np.ndarray, sampling_rate: int) -> str:
        return str(self.classifier.predict([self.features(audio, sampling_rate)])[0])


def tune_captions() -> list[str]:
    """Every tune caption of the tiny world, 108."""
    rules = language.RULES
    return [
        language.tune_caption(language.Tune(t, m, i, c))
        for t in rules["tempo"]
        for m in rules["mode"]
        for i in rules["instrument"]
        for c in rules["contour"]
    ]


def judge(audio: np.ndarray, sampling_rate: int, instrument: InstrumentJudge) -> dict:
    """What a clip plays: {"tempo", "mode", "instrument", "contour": word of the captions or None, "notes": [Note]}."""
    heard = notes(audio, sampling_rate)
    return {
        "tempo": tempo(audio, sampling_rate),
        "mode": mode(heard),
        "instrument": instrument(audio, sampling_rate),
        "contour": contour(heard),
        "notes": heard,
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sound-font", required=True)
    parser.add_argument("--codec", required=True, help="folder or hub name of a music codec")
    parser.add_argument("--clips", type=int, default=72)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)

    import torch
    from transformers import AutoModel

    import modeling_anygpt.codecs  # noqa: F401  (registers the codecs)

    torch.set_num_threads(1)
    codec = AutoModel.from_pretrained(args.codec).eval()
    rate = codec.config.sampling_rate
    instrument = InstrumentJudge(args.sound_font)
    rng = random.Random(args.seed)
    rows = {"original": [], "reconstruction": [], "reconstruction of another clip": []}
    held_out = [c for c in tune_captions() if language.is_held_out(c)]
    last = None
    for index in range(args.clips):
        tune = language.parse_tune(held_out[index % len(held_out)])
        score = tunes.notes(tune, rng)
        audio = tunes.render(score, tune.instrument, args.sound_font, rate)
        with torch.no_grad():
            coded = codec.decode(codec.encode(torch.from_numpy(audio)[None]))[0].numpy()
        original, copy = judge(audio, rate, instrument), judge(coded, rate, instrument)
        clips = {"original": original, "reconstruction": copy, "reconstruction of another clip": last}
        for name, heard in clips.items():
            if heard:
                right = [heard[field] == getattr(tune, field) for field in ("tempo", "mode", "instrument", "contour")]
                f1 = [note_f1(score, heard["notes"]), note_f1(original["notes"], heard["notes"])]
                rows[name].append(f1 + right)
        last = copy
    print(f"{args.clips} clips of {len(held_out)} held-out captions")
    print("| clip | note F1 to the score | note F1 to the original | tempo | mode | instrument | contour |")
    print("|---|---|---|---|---|---|---|")
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in np.mean(values, axis=0)) + " |")


if __name__ == "__main__":
    run_script(main)
