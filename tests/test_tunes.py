"""The tunes of the tiny world: melodies fit their captions, renders play the notes (skipped without a sound font)."""

import random
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from processing_anygpt.tiny_world import language, tunes

SOUND_FONT = Path("/usr/share/sounds/sf2/TimGM6mb.sf2")
ALL = [
    language.Tune(tempo, mode, "piano", contour)
    for tempo in language.RULES["tempo"]
    for mode in language.RULES["mode"]
    for contour in language.RULES["contour"]
]


def test_words_are_those_of_the_captions():
    for field, known, more in (
        ("instrument", tunes.INSTRUMENTS, tunes.MORE_INSTRUMENTS),
        ("tempo", tunes.TEMPOS, tunes.MORE_TEMPOS),
        ("mode", tunes.MODES, tunes.MORE_MODES),
        ("contour", tunes.CONTOURS, tunes.MORE_CONTOURS),
    ):
        assert list(known) == language.RULES[field]
        assert list(more) == language.MORE_TUNES[field]
        assert not set(more) & set(known)


def test_what_only_training_holds_is_played_there_and_nowhere_else(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "train")
    from make_music_data import render_clip

    monkeypatch.setattr(tunes, "render", lambda notes, instrument, font: instrument)

    def clips(count: int, **more) -> list[dict]:
        made = [render_clip(random.Random(i), "", **more) for i in range(count)]
        assert all(language.parse_tune(caption).instrument == played for played, caption, _ in made)
        return [asdict(language.parse_tune(caption)) for _, caption, _ in made]

    others = clips(300, tonic=60, others=True)
    for name, more in language.MORE_TUNES.items():
        assert {tune[name] for tune in others} == {*language.RULES[name], *more}
    assert all(any(tune[name] in more for name, more in language.MORE_TUNES.items()) for tune in others)
    assert all(tune[name] in language.RULES[name] for tune in clips(50) for name in language.MORE_TUNES)


@pytest.mark.parametrize("contour", language.MORE_TUNES["contour"])
def test_melodies_that_only_training_holds_fit_their_captions(contour):
    rng = random.Random(4)
    for tempo, mode in product([*tunes.TEMPOS, *tunes.MORE_TEMPOS], [*tunes.MODES, *tunes.MORE_MODES]):
        notes = tunes.notes(language.Tune(tempo, mode, "harp", contour), rng, tonic=60)
        pitches = [pitch for _, _, pitch in notes]
        assert len(notes) == round(4.8 / (tunes.TEMPOS | tunes.MORE_TEMPOS)[tempo])
        assert min(pitches) == 60 and max(pitches) <= 72
        assert {pitch - 60 for pitch in pitches} & {3, 4, 8, 9} == {
            "happy": {4, 9}, "sad": {3, 8}, "brave": {3, 9}, "strange": {4, 8}
        }[mode]  # fmt: skip
        half = len(pitches) // 2
        if contour == "down and up":
            assert pitches[0] == pitches[-1] == 72
        else:
            ends = [(pitches[0], pitches[half - 1]), (pitches[half], pitches[-1])]
            assert all(b > a if contour == "up twice" else b < a for a, b in ends)


@pytest.mark.parametrize("tune", ALL, ids=language.tune_caption)
def test_melody_fits_caption(tune):
    rng = random.Random(3)
    for _ in range(20):
        notes = tunes.notes(tune, rng)
        onsets, offsets, pitches = zip(*notes)
        assert onsets[0] == 0 and offsets[-1] == pytest.approx(4.8)
        assert np.allclose(np.diff(onsets), tunes.TEMPOS[tune.tempo])
        assert np.allclose(np.array(onsets) * 25, np.round(np.array(onsets) * 25))  # on the 40 ms grid of code frames
        assert 60 <= min(pitches) and max(pitches) <= 79

        intervals = {(p - pitches[0]) % 12 for p in pitches}
        thirds_and_sixths = {"happy": {4, 9}, "sad": {3, 8}}
        assert thirds_and_sixths[tune.mode] <= intervals
        other = thirds_and_sixths["sad" if tune.mode == "happy" else "happy"]
        assert not other & intervals

        rise = pitches[-1] - pitches[0]
        assert rise == {"up": 12, "down": -12, "up and down": 0}[tune.contour]
        if tune.contour == "up and down":
            assert 0 < int(np.argmax(pitches)) < len(pitches) - 1 and max(pitches) - pitches[0] >= 8


def test_melodies_vary_and_repeat_with_the_seed():
    tune = language.parse_tune("a steady sad tune on the flute going up")
    drawn = [tuple(tunes.notes(tune, random.Random(seed))) for seed in range(20)]
    assert len(set(drawn)) > 10
    assert drawn == [tuple(tunes.notes(tune, random.Random(seed))) for seed in range(20)]


def test_unknown_words_are_named():
    with pytest.raises(ValueError, match="'hasty'; known: slow, steady, fast"):
        tunes.notes(language.Tune("hasty", "sad", "flute", "up"), random.Random(0))
    with pytest.raises(ValueError, match="'kazoo'; known: piano"):
        tunes.render([(0.0, 1.0, 60)], "kazoo", str(SOUND_FONT))


def test_missing_sound_font_is_named(tmp_path):
    pytest.importorskip("tinysoundfont")
    with pytest.raises(FileNotFoundError, match="none.sf2"):
        tunes.render([(0.0, 1.0, 60)], "piano", str(tmp_path / "none.sf2"))


@pytest.mark.skipif(not SOUND_FONT.is_file(), reason="needs Debian's timgm6mb-soundfont")
@pytest.mark.parametrize("instrument", tunes.INSTRUMENTS)
def test_render_plays_the_notes(instrument):
    pytest.importorskip("tinysoundfont")
    played = [(0.0, 1.6, 60), (1.6, 3.2, 67), (3.2, 4.8, 72)]
    audio = tunes.render(played, instrument, str(SOUND_FONT))
    assert audio.dtype == np.float32 and audio.shape == (80000,)
    assert np.abs(audio).max() == pytest.approx(0.6, abs=1e-3)
    for onset, _, pitch in played:
        first = round((onset + 0.1) * 16000)
        spectrum = np.abs(np.fft.rfft(audio[first : first + 8000] * np.hanning(8000), 65536))
        hertz = np.fft.rfftfreq(65536, 1 / 16000)
        semitone = 69 + 12 * np.log2(hertz[1:] / 440)
        near = np.abs(semitone - pitch) < 0.5
        # the note's fundamental stands out of everything below and of its own neighbours
        below = (semitone < pitch - 1.5) & (semitone > 30)
        assert spectrum[1:][near].max() > 5 * spectrum[1:][below].max()
    # what was played before leaves no trace
    tunes.render([(0.0, 4.9, 65)], "violin", str(SOUND_FONT))
    assert np.array_equal(audio, tunes.render(played, instrument, str(SOUND_FONT)))
