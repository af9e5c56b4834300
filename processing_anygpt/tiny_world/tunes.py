"""Tunes of anygpt-tiny's world: monophonic, 5 s, on General MIDI instruments.

A `language.Tune` holds what a caption says (instrument, tempo, mode, contour); `notes` draws one of the many melodies
that fit it; `render` plays the notes through a sound font. Only `render` needs a package beyond numpy and Python
(tinysoundfont) and a sound font, for example TimGM6mb.sf2 of Debian's `timgm6mb-soundfont`.

Every melody stays inside one octave, starts and ends on the tonic (of those that only training holds, some on the
sixth) and touches the third and the sixth, the degrees in which the modes differ, so that its mode can be heard.
"""

import random
from functools import lru_cache
from pathlib import Path

import numpy as np

from .language import Tune

SECONDS = 5.0
SAMPLING_RATE = 16000  # Hz
# General MIDI programs, counted from 0. Guitar is the nylon one: basic-pitch reads its attacks best.
INSTRUMENTS = {"piano": 0, "guitar": 24, "violin": 40, "flute": 73, "trumpet": 56, "marimba": 12}
MORE_INSTRUMENTS = {
    "harp": 46, "banjo": 105, "cello": 42, "oboe": 68, "clarinet": 71, "saxophone": 65, "xylophone": 13,
    "vibraphone": 11, "celesta": 8, "sitar": 104, "koto": 107, "kalimba": 108,
}  # fmt: skip
# Note lengths in seconds: whole numbers of 40 ms code frames, and each divides the 4.8 s that are played.
TEMPOS = {"slow": 0.80, "steady": 0.48, "fast": 0.32}
MORE_TEMPOS = {"lazy": 0.60, "brisk": 0.40, "rushing": 0.24}
PLAYED_SECONDS = 4.8  # the last 0.2 s let the last note ring out
MODES = {"happy": (0, 2, 4, 5, 7, 9, 11), "sad": (0, 2, 3, 5, 7, 8, 10)}  # major, natural minor (semitones)
# Dorian and Mixolydian with a minor sixth: of two thirds and two sixths, the other two pairs.
MORE_MODES = {"brave": (0, 2, 3, 5, 7, 9, 10), "strange": (0, 2, 4, 5, 7, 8, 10)}
CONTOURS = ("up", "down", "up and down")
MORE_CONTOURS = ("down and up", "up twice", "down twice")
TONICS = (60, 62, 64, 65, 67)  # C4 D4 E4 F4 G4 (MIDI)

_THIRD, _SIXTH, _OCTAVE = 2, 5, 7  # scale degrees, the tonic is 0


def notes(tune: Tune, rng: random.Random, tonic: int | None = None) -> list[tuple[float, float, int]]:
    """One melody that fits the tune, drawn with `rng`: [(onset s, offset s, MIDI pitch)], pitches C4 (60) to G5 (79).

    Args:
        tonic: MIDI pitch of the key, one of `TONICS`; None draws one.

    Raises:
        ValueError: a tempo, mode or contour that the tiny world doesn't know.
    """
    tempos, modes = TEMPOS | MORE_TEMPOS, MODES | MORE_MODES
    for field, known in (("tempo", tempos), ("mode", modes), ("contour", CONTOURS + MORE_CONTOURS)):
        if getattr(tune, field) not in known:
            raise ValueError(f"Got {field} {getattr(tune, field)!r}; known: {', '.join(known)}.")
    length = tempos[tune.tempo]
    count = round(PLAYED_SECONDS / length)  # 6 to 20 notes
    tonic = rng.choice(TONICS) if tonic is None else tonic
    scale = modes[tune.mode]
    pitches = [tonic + scale[d % 7] + 12 * (d // 7) for d in _degrees(tune.contour, count, rng)]
    return [(round(i * length, 2), round((i + 1) * length, 2), p) for i, p in enumerate(pitches)]


def _degrees(contour: str, count: int, rng: random.Random) -> list[int]:
    """Scale degrees (0 tonic, 7 its octave) of a melody of `count` notes."""
    half = count // 2
    while True:
        if contour == "up and down":
            peak = rng.choice((_SIXTH, _OCTAVE))
            rise = _climb(peak, half, rng)
            fall = _climb(peak, count - 1 - half, rng)
            degrees = rise + fall[-2::-1]
        elif contour == "down and up":
            fall = _climb(_OCTAVE, half, rng)
            degrees = fall[::-1] + _climb(_OCTAVE, count - 1 - half, rng)[1:]
        elif contour in ("up twice", "down twice"):
            first, second = (_climb(rng.choice((_SIXTH, _OCTAVE)), n - 1, rng) for n in (half, count - half))
            degrees = first + second if contour == "up twice" else first[::-1] + second[::-1]
        else:
            degrees = _climb(_OCTAVE, count - 1, rng)
            if contour == "down":
                degrees.reverse()
        if _THIRD in degrees and _SIXTH in degrees:
            return degrees


def _climb(top: int, steps: int, rng: random.Random) -> list[int]:
    """Degrees from 0 to `top` in `steps` steps, mostly to a neighbour; reaches the top only with the last one."""
    # The fewer the steps, the larger they must be: 2 steps to the sixth are a third and a fourth.
    ups = (1, 2) if steps >= 5 else (1, 2, 3, 4)
    slack = steps > top  # more steps than degrees: some must go back
    while True:
        degrees = [0]
        for _ in range(steps):
            if (slack and rng.random() < 0.3) or (not slack and rng.random() < 0.1):
                step = -1
            else:
                step = ups[0] if rng.random() < 0.7 else rng.choice(ups[1:])
            degrees.append(degrees[-1] + step)
        if degrees[-1] == top and min(degrees) == 0 and max(degrees[:-1]) < top:
            return degrees


def render(
    notes: list[tuple[float, float, int]], instrument: str, sound_font: str, sampling_rate: int = SAMPLING_RATE
) -> np.ndarray:
    """Play notes on one instrument.

    Args:
        notes: [(onset s, offset s, MIDI pitch)], in order of onset, not overlapping.
        instrument: a key of INSTRUMENTS or MORE_INSTRUMENTS.
        sound_font: path of a General MIDI .sf2 file.
        sampling_rate: Hz.

    Returns:
        float32 [5 * sampling_rate], mono, peak 0.6. The same call gives the same samples.

    Raises:
        ValueError: unknown instrument.
        ImportError: tinysoundfont is missing.
        FileNotFoundError: no such sound font.
    """
    programs = INSTRUMENTS | MORE_INSTRUMENTS
    if instrument not in programs:
        raise ValueError(f"Got instrument {instrument!r}; known: {', '.join(programs)}.")
    synth, font = _synth(str(sound_font), sampling_rate)
    synth.sounds_off()
    synth.generate(sampling_rate // 10)  # lets go of what the call before left: then every call starts from silence
    synth.program_select(0, font, 0, programs[instrument])
    total = round(SECONDS * sampling_rate)
    # A note's end sorts before the next note's start at the same time. Every second note is a little softer.
    events = [(round(on * sampling_rate), 1, pitch, 100 - 12 * (i % 2)) for i, (on, _, pitch) in enumerate(notes)]
    events += [(round(off * sampling_rate), 0, pitch, 0) for _, off, pitch in notes]
    audio, now = [], 0
    for time, start, pitch, velocity in [*sorted(events), (total, 0, 0, 0)]:
        if time > now:
            stereo = np.frombuffer(bytes(synth.generate(time - now)), dtype=np.float32).reshape(-1, 2)
            audio.append(stereo.mean(axis=1))
            now = time
        if start:
            synth.noteon(0, pitch, velocity)
        else:
            synth.noteoff(0, pitch)
    audio = np.concatenate(audio)[:total]
    return (audio * (0.6 / max(np.abs(audio).max(), 1e-6))).astype(np.float32)


@lru_cache(maxsize=1)
def _synth(sound_font: str, sampling_rate: int):
    """A synthesiser with the font loaded (50 ms, far longer than playing a tune takes), and the font's number."""
    try:
        import tinysoundfont
    except ImportError as error:
        raise ImportError("Rendering tunes needs tinysoundfont: pip install tinysoundfont") from error
    if not Path(sound_font).is_file():
        raise FileNotFoundError(f"No sound font at {sound_font!r}: give the path of a General MIDI .sf2 file.")
    synth = tinysoundfont.Synth(samplerate=sampling_rate, gain=-6)
    return synth, synth.sfload(sound_font)
