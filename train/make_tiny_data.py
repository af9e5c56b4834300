"""Make anygpt-tiny's tokenizer, configuration and training rows from codes.

  python train/make_tiny_data.py model --out data/tiny                       # tokenizer and first weights
  python train/make_tiny_data.py rows --out data/tiny --speech data/speech --images data/images --music data/music
  python train/make_tiny_data.py chat --out data/tiny --speech data/speech --music data/music

Each task becomes DIR/rows/TASK_train.npz and TASK_heldout.npz: `ids` uint16 (rows end to end), `labelled` (bit-packed:
which ids are learned), `offsets` int64 [N+1], each file under 60 MB. Sources are optional: a task without its codes is
skipped. `chat` also speaks replies and draws pictures that no code file holds, so it needs the voices' programs.
"""

import argparse
import functools
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, astuple, fields
from itertools import combinations, product
from pathlib import Path

import numpy as np
from codec_files import read_arrays
from settings import run_script
from transformers import PreTrainedTokenizerFast

from modeling_anygpt import AnyGPTConfig
from processing_anygpt.conversation import render
from processing_anygpt.files import write_npz
from processing_anygpt.tiny_world import language, pictures, tunes, voices

LISTENED = 10  # of so many tunes in C one is described
UNEVEN = 2.5  # times as often as on average, or as rarely, at most
ALIKE = 8  # speech codes that a code may be taken for
VOICE_FRAMES = 50  # speech frames of a voice prompt in the language model's context: 1 s


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["model", "rows", "chat"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default=Path(__file__).parent / "configs/tiny_model.yaml", type=Path)
    parser.add_argument("--speech", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--music", type=Path)
    parser.add_argument("--codecs", type=Path, default=Path("modeling_anygpt/pretrained/anygpt_tiny"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    if args.step == "model":
        from tiny_start import make_model_folder

        make_model_folder(args.config, args.out / "model", args.codecs)
        return
    check_sources(args)
    rows = Rows(args.out)
    for split in ("train", "heldout"):
        rng = random.Random(f"{args.step}-{args.seed}-{split}")
        if args.step == "rows":
            alignment_rows(rows, args, split, rng)
        else:
            from chat_rows import chat_rows

            chat_rows(rows, args, split, rng)


def check_sources(args: argparse.Namespace) -> None:
    """Before any row is made: ValueError or OSError if a step lacks its codes."""
    needed = {"speech": args.speech, "images": args.images, "music": args.music}
    if args.step == "chat":
        needed.pop("images")  # it draws its own
    given = [folder for folder in needed.values() if folder]
    if not given or args.step == "chat" and len(given) < len(needed):
        some = " or ".join(f"--{name}" for name in needed) if args.step == "rows" else "--speech and --music"
        raise ValueError(f"The step {args.step!r} needs {some}: folders of codes_train.npz and codes_heldout.npz.")
    paths = [folder / f"codes_{split}.npz" for folder in given for split in ("train", "heldout")]
    if args.step == "rows" and args.speech:
        paths.append(args.speech / "codes_words.npz")
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"No {path}. The script that makes it is named in the Makefile, under tiny-data.")


# ---------------------------------------------------------------- rows


class Rows:
    """Renders conversations with the model folder's tokenizer and writes them task by task."""

    def __init__(self, out: Path):
        if not (out / "model/config.json").is_file():
            raise ValueError(f"No model in {out / 'model'}: make_tiny_data.py model --out {out} makes it.")
        self.folder = out / "rows"
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "model")
        self.modalities = AnyGPTConfig.from_pretrained(out / "model").modalities
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, task: str, split: str, conversations, learned_after: str | None = None):
        """`conversations`: iterable of message lists -> TASK_SPLIT.npz. Of a row, what follows the token
        `learned_after` is learned, or every assistant turn."""
        rendered = [render(messages, self.tokenizer, self.modalities) for messages in conversations]
        if not rendered:
            return
        ids = np.concatenate([np.asarray(row, dtype=np.uint16) for row, _ in rendered])
        learned = [np.asarray(labels) >= 0 for _, labels in rendered]
        if learned_after:
            marker = self.tokenizer.convert_tokens_to_ids(learned_after)
            for (row, _), each in zip(rendered, learned, strict=True):
                each[: row.index(marker) + 1] = False
        labelled = np.packbits(np.concatenate(learned))
        offsets = np.cumsum([0] + [len(row) for row, _ in rendered])
        path = self.folder / f"{task}_{split}.npz"
        write_npz(path, ids=ids, labelled=labelled, offsets=offsets)
        size = path.stat().st_size / 1e6
        print(f"{path.name}: {len(rendered)} rows, {len(ids)} tokens, {size:.1f} MB", flush=True)


def turn(user, assistant) -> list[dict]:
    """One exchange; the arguments are lists of blocks, a bare string is a text block."""
    blocks = [[{"type": "text", "text": b} if isinstance(b, str) else b for b in side] for side in (user, assistant)]
    return [{"role": "user", "content": blocks[0]}, {"role": "assistant", "content": blocks[1]}]


def block(modality: str, codes) -> dict:
    return {"type": modality, "codes": codes}


def instruction(source: str, target: str, rng: random.Random, text: str = "") -> str:
    return rng.choice(language.INSTRUCTIONS[source, target]).format(text=text)


def load_speech(folder: Path, split: str) -> list[tuple[str, str, np.ndarray]]:
    """[(text, voice, level-1 codes [T])]"""
    codes, starts, texts, names = read_arrays(folder / f"codes_{split}.npz", "codes", "offsets", "text", "voice")
    return list(zip(texts.tolist(), names.tolist(), np.split(codes[0], starts[1:-1]), strict=True))


def load_items(folder: Path, split: str, to_make: bool = False) -> list[tuple[str, np.ndarray]]:
    """[(caption, codes)] of pictures or tunes.

    `to_make`: those that teach making one, in which nothing varies that the caption doesn't say and that need not:
    pictures without jitter, tunes in C. What varies can be seen past, but it hides from a painter what was asked for.
    Of those tunes few are listened to: who mostly hears C hears other keys wrong.
    """
    path = folder / f"codes_{split}.npz"
    data = np.load(path)
    codes, captions = read_arrays(path, "neat" if to_make and "neat" in data else "codes", "caption")
    chosen = np.full(len(codes), True)
    if "tonic" in data:
        in_c = data["tonic"] == tunes.TONICS[0]
        chosen = in_c if to_make else ~in_c | (np.arange(len(codes)) % LISTENED == 0)
    return list(zip(captions[chosen].tolist(), codes[chosen], strict=True))


def balanced(items: list[tuple[str, np.ndarray]]) -> list[tuple[str, np.ndarray]]:
    """As many tunes, those that the exam could hold drawn by `even_weights`."""
    known = [i for i, (caption, _) in enumerate(items) if is_of_the_exam(asdict(language.parse_tune(caption)))]
    counts = Counter(items[i][0] for i in known)
    weights = even_weights(counts)
    share = np.array([weights[items[i][0]] / counts[items[i][0]] for i in known])
    drawn = np.random.default_rng(0).choice(known, len(known), p=share / share.sum())
    others = set(range(len(items))) - set(known)
    return [items[i] for i in sorted([*drawn.tolist(), *others])]


def even_weights(captions: Iterable[str]) -> dict[str, float]:
    """How often to play each of these captions, 1 on average, so that all pairs of properties are about as frequent.

    Of six captions "... piano going down" two, sad both, are held out; of the other four three are happy. Who plays
    each as often as the other learns that a piano going down is happy.
    """
    captions = sorted(captions)
    values = np.array([astuple(language.parse_tune(caption)) for caption in captions])  # [captions, properties]
    pairs = [np.unique(values[:, list(two)], axis=0, return_inverse=True)[1] for two in combinations(range(4), 2)]
    weights = np.ones(len(captions))
    for _ in range(100):  # iterative proportional fitting: each pair of properties in turn gets even sums
        for place in pairs:
            weights /= np.bincount(place, weights)[place]
        weights = np.clip(weights / weights.mean(), 1 / UNEVEN, UNEVEN)  # where too much is held out for even sums
    return dict(zip(captions, weights.tolist(), strict=True))


def voice_window(voice: str, by_voice: dict, rng: random.Random) -> np.ndarray:
    """One second of another utterance of `voice`: codes [VOICE_FRAMES]."""
    while True:
        codes = rng.choice(by_voice[voice])
        if len(codes) >= VOICE_FRAMES:
            start = rng.randrange(len(codes) - VOICE_FRAMES + 1)
            return codes[start : start + VOICE_FRAMES]


def alignment_rows(rows: Rows, args, split: str, rng: random.Random):
    """One medium against its text, both ways: transcribe and speak, describe and draw, describe and play."""
    if args.speech:
        speech = load_speech(args.speech, split)
        by_voice = defaultdict(list)
        for _, voice, codes in speech:
            by_voice[voice].append(codes)
        speech_rows(rows, ("asr", "tts"), split, speech, by_voice, rng)
        if split == "train":
            asr_rows(rows, "asr_blurred", split, blurred(speech, args.codecs, rng), rng)
            words = load_speech(args.speech, "words")
            speech_rows(rows, ("asr_words", "tts_words"), split, words, by_voice, rng)
    for folder, modality, describe, make in (
        (args.images, "image", "caption", "draw"),
        (args.music, "music", "describe", "play"),
    ):
        if folder:
            items = [(description(text), codes) for text, codes in load_items(folder, split)]
            rows.write(describe, split, (
                turn([instruction(modality, "text", rng), block(modality, codes)], [text])
                for text, codes in items if split == "heldout" or not language.is_held_out(text)
            ))  # fmt: skip
            items = load_items(folder, split, to_make=True)
            if modality == "music" and split == "train":
                items = balanced(items)
            made = [(instruction("text", modality, rng, request(text, rng)), codes) for text, codes in items]
            tasks = {make: made}
            if modality == "music" and split == "train":  # of the six the one that is played as another most often
                tasks["play_guitar"] = [(asked, codes) for asked, codes in made if "on the guitar" in asked]
            for task, pairs in tasks.items():
                rows.write(task, split, (turn([asked], [block(modality, codes)]) for asked, codes in pairs))
            if split == "train":
                read_back_rows(rows, make, modality, made)


def speech_rows(rows: Rows, tasks: tuple[str, str], split: str, speech: list, by_voice: dict, rng: random.Random):
    """Recordings to write down and, in the voices of training, to speak."""
    asr_rows(rows, tasks[0], split, speech, rng)
    # Voices made strange ("flite_slt*1.07") and those only heard are fine accents to hear, none to speak with.
    spoken = [item for item in speech if split == "heldout" or item[1] in voices.TRAINING_VOICES]
    spoken = spoken if split == "heldout" else spoken * 2  # another voice prompt each time
    rng.shuffle(spoken)
    rows.write(tasks[1], split, (speak_turn(text, voice, codes, by_voice, rng) for text, voice, codes in spoken))
    if split == "train":  # the words alone are what a reply says before it speaks them
        wordings = [*language.INSTRUCTIONS["text", "speech"], "{text}"]
        made = [(rng.choice(wordings).format(text=text), codes) for text, _, codes in spoken]
        read_back_rows(rows, tasks[1], "speech", made)


def asr_rows(rows: Rows, task: str, split: str, speech: Iterable, rng: random.Random):
    """Recordings to write down."""
    rows.write(task, split, (
        turn([instruction("speech", "text", rng), block("speech", codes)], [text]) for text, _, codes in speech
    ))  # fmt: skip


def blurred(speech: list, codecs: Path, rng: random.Random) -> Iterable[tuple[str, str, np.ndarray]]:
    """Recordings with up to two codes in five replaced by others that sound alike, as from a stranger."""
    from codebook_init import codebook_vectors

    vectors = codebook_vectors(codecs)["speech"][0]  # [codes, features]
    distances = (vectors**2).sum(1) - 2 * vectors @ vectors.T
    alike = np.argsort(distances, axis=1)[:, 1 : 1 + ALIKE].astype(np.uint16)
    numbers = np.random.default_rng(rng.getrandbits(32))
    for text, voice, codes in speech:
        replaced = numbers.random(len(codes)) < numbers.uniform(0, 0.4)
        yield text, voice, np.where(replaced, alike[codes, numbers.integers(ALIKE, size=len(codes))], codes)


def read_back_rows(rows: Rows, make: str, modality: str, made: list):
    """The making of things turned round: of each thing, the request that it answers (`language.READ_BACK`)."""
    rows.write(f"{make}_read_back", "train", (
        turn([language.READ_BACK, block(modality, codes)], [asked]) for asked, codes in made
    ))  # fmt: skip


def description(caption: str) -> str:
    """What is said of a picture or tune: of the two ways to word a scene always the same, so none is to be guessed."""
    if " tune on " in caption:
        return caption
    return language.scene_caption(pictures.canonical(language.parse_scene(caption)))


def request(caption: str, rng: random.Random) -> str:
    """What is asked for to get it. Of a tune, most of the time, only some of what it is: "a sad tune on the flute".

    Of "a slow happy ... up" that is held out, a player has heard every neighbour, all of them sad: whole captions
    teach it that slow guitars going up are sad. Fewer words teach it what each of them means; but not words that in
    training decide what they don't say, such as "a slow tune on the guitar going up".
    """
    if " tune on " not in caption or rng.random() < 1 / 5:
        return caption
    tune = language.parse_tune(caption)
    said = {name: value for name, value in asdict(tune).items() if rng.random() < 0.6}
    if not is_open(said):
        return caption
    parts = {"tempo": tune.tempo, "mode": tune.mode, "tune": "tune"}
    parts |= {"instrument": f"on the {tune.instrument}", "contour": f"going {tune.contour}"}
    return " ".join(["a", *(words for name, words in parts.items() if name in said or name == "tune")])


def is_open(said: dict[str, str]) -> bool:
    """Whether training has a tune for each value of each property that is not said, together with what is."""
    if not is_of_the_exam(said):
        return True
    fitting = [tune for tune in seen_tunes() if said.items() <= tune.items()]
    left = [f.name for f in fields(language.Tune) if f.name not in said]
    return all({tune[name] for tune in fitting} == set(language.RULES[name]) for name in left)


def is_of_the_exam(said: dict[str, str]) -> bool:
    """Whether no property is one that only training holds."""
    return not any(word in language.MORE_TUNES[name] for name, word in said.items())


@functools.cache
def seen_tunes() -> list[dict[str, str]]:
    """The properties of every tune on the instruments of the exam that training may hold."""
    every = (language.Tune(*each) for each in product(*(language.RULES[f.name] for f in fields(language.Tune))))
    return [asdict(tune) for tune in every if not language.is_held_out(language.tune_caption(tune))]


def speak_turn(text, voice, codes, by_voice, rng) -> list[dict]:
    """A text and, four times in five, a second of the voice to say it in."""
    user = [instruction("text", "speech", rng, text)]
    if rng.random() < 0.8:
        user = [block("speech", voice_window(voice, by_voice, rng)), *user]
    return turn(user, [block("speech", codes)])


if __name__ == "__main__":
    run_script(main)
