"""Every sentence of the tiny world: one grammar that samples text, feeds the judge's recogniser and splits the data.

`RULES` maps a rule name to its alternatives; `<name>` inside an alternative refers to another rule. The same table
gives random sentences (`expand`) and a JSGF grammar (`jsgf`), so a judge can never disagree with the data about what
can be said. Text is lower case without punctuation, as a recogniser writes it.
"""

import random
import re
import zlib
from dataclasses import dataclass
from functools import cache

RULES: dict[str, list[str]] = {
    # pictures
    "size": ["big", "small"],
    "colour": ["red", "green", "blue", "yellow", "purple", "pink"],
    "shape": ["circle", "square", "triangle", "star", "heart", "cross"],
    "relation": ["above", "below", "left of", "right of"],
    "single": ["a <size> <colour> <shape>"],
    "pair": ["a <size> <colour> <shape> <relation> a <size> <colour> <shape>"],
    "row": ["a <colour> <shape> and a <colour> <shape> and a <colour> <shape>"],
    "picture": ["<single>", "<pair>", "<row>"],
    # tunes
    "tempo": ["slow", "steady", "fast"],
    "mode": ["happy", "sad"],
    "instrument": ["piano", "guitar", "violin", "flute", "trumpet", "marimba"],
    "contour": ["up", "down", "up and down"],
    "tune": ["a <tempo> <mode> tune on the <instrument> going <contour>"],
    # requests: the same words typed or spoken
    "draw": ["draw", "show me", "i want to see"],
    "play": ["play", "i want to hear", "let me hear"],
    "picture_request": ["<draw> <picture>"],
    "tune_request": ["<play> <tune>"],
    "speech_request": ["say <saying>"],
    # everyday sentences and digit strings
    "noun": ["dog", "cat", "bird", "horse", "man", "woman", "boy", "girl"],
    "verb": ["sees", "likes", "finds", "wants"],
    "object": ["house", "tree", "book", "ball", "boat", "flower", "table", "apple"],
    "when": ["today", "tomorrow", "now", "again"],
    "everyday": [
        "the <size> <noun> <verb> the <object>",
        "the <noun> <verb> a <colour> <object>",
        "the <noun> <verb> the <object> <when>",
    ],
    "digit": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "digits": [
        "<digit> <digit> <digit>",
        "<digit> <digit> <digit> <digit>",
        "<digit> <digit> <digit> <digit> <digit>",
    ],
    "saying": ["<everyday>", "<digits>"],
    "question": [
        "good morning",
        "good night",
        "how are you today",
        "what is your name",
        "what can you do",
        "where is the dog",
        "what does the cat want",
        "thank you very much",
    ],
    "answer": [
        "good morning to you",
        "sleep well my friend",
        "i am very well today",
        "my name is any",
        "i can draw and play and say",
        "the dog is in the house",
        "the cat wants the bird",
        "you are welcome my friend",
    ],
    "look": ["what is in this picture", "tell me about this picture"],
    "listen": ["what is this tune", "tell me about this tune"],
}

# What tunes are like that only training holds. Of 93 captions a player learns each by heart: three in four of those of
# a piano going down are happy, so for it a piano going down is happy. Of two thousand it learns what each word means.
# Nobody speaks of these.
MORE_TUNES: dict[str, list[str]] = {
    "tempo": ["lazy", "brisk", "rushing"],
    "mode": ["brave", "strange"],
    "instrument": ["harp", "banjo", "cello", "oboe", "clarinet", "saxophone", "xylophone", "vibraphone", "celesta",
                   "sitar", "koto", "kalimba"],
    "contour": ["down and up", "up twice", "down twice"],
}  # fmt: skip

# What is spoken in training and evaluation, with its share. Captions alone are spoken too: they are spoken answers.
SPOKEN_MIX: dict[str, float] = {
    "picture_request": 0.22,
    "picture": 0.08,
    "tune_request": 0.16,
    "tune": 0.06,
    "speech_request": 0.10,
    "everyday": 0.16,
    "digits": 0.16,
    "question": 0.02,
    "answer": 0.02,
    "look": 0.01,
    "listen": 0.01,
}

# The typed instruction of each task. `{text}` is the caption or sentence; tasks with media in them have none.
INSTRUCTIONS: dict[tuple[str, str], list[str]] = {
    ("speech", "text"): ["write down what you hear", "transcribe this recording"],
    ("text", "speech"): ["read this aloud {text}", "say {text}"],
    ("image", "text"): ["describe this picture", "what is in this picture"],
    ("text", "image"): ["draw {text}", "show me {text}", "i want to see {text}"],
    ("music", "text"): ["describe this tune", "what is this tune"],
    ("text", "music"): ["play {text}", "i want to hear {text}", "let me hear {text}"],
}

# What a picture, tune or recording that the model made is shown back to it with; the answer is the request.
READ_BACK = "what was asked for"

ANSWERS: dict[str, str] = dict(zip(RULES["question"], RULES["answer"]))

HELD_OUT_SHARE = 10  # one combination in ten is never seen in training
_REFERENCE = re.compile(r"<(\w+)>")
_REQUEST = re.compile(r"^(?:{})\s+(?=a\b)|^say\s+".format("|".join(RULES["draw"] + RULES["play"])))
# Fixed phrases are too few to hold any out.
_ALWAYS_SEEN = {*RULES["question"], *RULES["answer"], *RULES["look"], *RULES["listen"]}


@dataclass(frozen=True)
class Thing:
    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """One to three things. `relation` is None for one, a word of RULES["relation"] for two (first thing relative to
    the second), "row" for three (left to right, all small)."""

    things: tuple[Thing, ...]
    relation: str | None = None


@dataclass(frozen=True)
class Tune:
    tempo: str
    mode: str
    instrument: str
    contour: str


def expand(rule: str, rng: random.Random) -> str:
    """A random sentence of `rule`: alternatives and words are uniform."""
    return _REFERENCE.sub(lambda match: expand(match[1], rng), rng.choice(RULES[rule]))


def sample_spoken(rng: random.Random) -> str:
    """A random sentence as spoken in the tiny world, held out or not."""
    kind = rng.choices(list(SPOKEN_MIX), weights=SPOKEN_MIX.values())[0]
    return expand(kind, rng)


def core(text: str) -> str:
    """The caption or sentence inside a request: "show me a big red circle" -> "a big red circle"."""
    return _REQUEST.sub("", text)


def is_held_out(text: str) -> bool:
    """Whether this combination is kept from training; a request is held out when the caption inside it is.

    Decided by a checksum of the words, so the split is the same in every process and for every modality.
    """
    sentence = core(text)
    if sentence in _ALWAYS_SEEN:
        return False
    return zlib.crc32(sentence.encode()) % HELD_OUT_SHARE == 0


def sample(rule: str, rng: random.Random, held_out: bool = False) -> str:
    """A random sentence of `rule` from the training side or the held-out side of the split."""
    while True:
        sentence = expand(rule, rng)
        if is_held_out(sentence) == held_out:
            return sentence


def sample_words(rng: random.Random) -> str:
    """One to six words in no order that means anything, held out or not.

    In a sentence half of a word follows from its place; here nothing does, so hearing and saying are learnt by word.
    """
    return " ".join(rng.choices(vocabulary(), k=rng.randint(1, 6)))


@cache
def vocabulary() -> list[str]:
    """Every word that can be spoken, sorted."""
    words = set()
    for alternatives in RULES.values():
        for alternative in alternatives:
            words.update(_REFERENCE.sub(" ", alternative).split())
    return sorted(words)


def jsgf(rules: list[str] | None = None) -> str:
    """The closed grammar of the given top rules (all spoken ones by default), in Java Speech Grammar Format."""
    lines = [
        "#JSGF V1.0;",
        "grammar tiny;",
        f"public <sentence> = {' | '.join(f'<{r}>' for r in rules or SPOKEN_MIX)};",
    ]
    lines += [f"<{name}> = {' | '.join(f'( {a} )' for a in alternatives)};" for name, alternatives in RULES.items()]
    return "\n".join(lines) + "\n"


def scene_caption(scene: Scene) -> str:
    names = [f"a {t.size} {t.colour} {t.shape}" for t in scene.things]
    if scene.relation == "row":
        return " and ".join(f"a {t.colour} {t.shape}" for t in scene.things)
    return f" {scene.relation} ".join(names) if scene.relation else names[0]


def parse_scene(caption: str) -> Scene:
    """Inverse of `scene_caption`; ValueError if the text is not a picture caption of this world."""
    size, colour, shape, relation = ("|".join(RULES[name]) for name in ("size", "colour", "shape", "relation"))
    thing = f"a ({size}) ({colour}) ({shape})"
    small = f"a ({colour}) ({shape})"
    if match := re.fullmatch(thing, caption):
        return Scene((Thing(*match.groups()),))
    if match := re.fullmatch(f"{thing} ({relation}) {thing}", caption):
        words = match.groups()
        return Scene((Thing(*words[:3]), Thing(*words[4:])), words[3])
    if match := re.fullmatch(" and ".join([small] * 3), caption):
        words = match.groups()
        return Scene(tuple(Thing("small", words[i], words[i + 1]) for i in (0, 2, 4)), "row")
    raise ValueError(f"Not a picture caption of the tiny world: {caption!r}. Example: 'a big red circle'.")


def tune_caption(tune: Tune) -> str:
    return f"a {tune.tempo} {tune.mode} tune on the {tune.instrument} going {tune.contour}"


def parse_tune(caption: str) -> Tune:
    """Inverse of `tune_caption`; ValueError if the text is not a tune caption of this world."""
    pattern = "a (\\w+) (\\w+) tune on the (\\w+) going ([\\w ]+)"
    match = re.fullmatch(pattern, caption)
    names = ("tempo", "mode", "instrument", "contour")
    if not match or any(word not in RULES[name] + MORE_TUNES[name] for name, word in zip(names, match.groups())):
        raise ValueError(
            f"Not a tune caption of the tiny world: {caption!r}. Example: 'a slow sad tune on the flute going up'."
        )
    return Tune(*match.groups())
