"""What a lesson adds to the tiny world: a word, a shape, an instrument and a voice that anygpt-tiny has never met.

Inside `enlarged()` every function of the tiny world knows them: they are sampled, said, drawn, played, parsed and
judged like the rest. Outside nothing changes. train/make_lesson.py makes the data, eval/lesson.py examines.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from . import language, pictures, tunes

WORD = "monkey"
SHAPE = "oval"
INSTRUMENT = "organ"
PROGRAM = 19  # General MIDI, counted from 0: the church organ
VOICE = "joe"  # a speaker that no training data holds, and whose words the codec keeps
HELD_OUT_SHARE = 5  # more is kept back than elsewhere: there are only 18 captions of tunes on the organ
NOUN = {"noun": WORD, "shape": SHAPE, "instrument": INSTRUMENT}  # the rule of the grammar that each word joins


@contextmanager
def enlarged() -> Iterator[None]:
    """The world with the lesson in it. Not for threads: the world is one for the whole process."""
    pictures._references.cache_clear()
    for rule, word in NOUN.items():
        language.RULES[rule].append(word)
    tunes.INSTRUMENTS[INSTRUMENT] = PROGRAM
    try:
        yield
    finally:
        del tunes.INSTRUMENTS[INSTRUMENT]
        for rule, word in NOUN.items():
            language.RULES[rule].remove(word)
        pictures._references.cache_clear()


def is_new(text: str) -> bool:
    """Whether a sentence holds one of the words of the lesson."""
    return not set(NOUN.values()).isdisjoint(text.split())


def is_held_out(text: str) -> bool:
    """As `language.is_held_out`, which it includes; of sentences with a new word one in five."""
    if is_new(text):
        return zlib.crc32(language.core(text).encode()) % HELD_OUT_SHARE == 0
    return language.is_held_out(text)
