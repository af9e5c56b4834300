"""Conversations for instruction tuning: typed or spoken requests, with or without media, answered in any modality.

Part of make_tiny_data.py's `chat` step. A spoken request is answered with its transcript first (`<-Ins-> ...
<-Res->`), so that hearing and doing, both learned in alignment, are chained and not learned anew.
"""

import random
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from make_speech_data import encode
from make_tiny_data import Rows, block, even_weights, load_items, load_speech, request, turn, voice_window

from processing_anygpt import codec_io
from processing_anygpt.codec_shelf import CodecShelf
from processing_anygpt.tiny_world import language, pictures, voices
from processing_anygpt.vocabulary import RESPONSE

TUNES = 6  # that answer a spoken request on average; a picture needs one answer, as it is neat
TOLD = 15_000  # tunes
SAYINGS = {"train": 500, "heldout": 8}  # requests to say something, and replies, for each voice


def chat_rows(rows: Rows, args, split: str, rng: random.Random):
    speech = [item for item in load_speech(args.speech, split) if item[1] in voices.TRAINING_VOICES]
    utterances = defaultdict(list)  # text -> [(voice, codes)]
    by_voice = defaultdict(list)
    for text, voice, codes in speech:
        utterances[text].append((voice, codes))
        by_voice[voice].append(codes)
    tunes_of, playable = defaultdict(list), defaultdict(list)
    for caption, codes in load_items(args.music, split):
        tunes_of[caption].append(codes)
    for caption, codes in load_items(args.music, split, to_make=True):
        playable[caption].append(codes)
    spoken_captions = [text for text in utterances if language.core(text).startswith("a ")]
    codecs = CodecShelf(str(args.codecs))
    scenes = sorted({language.core(t) for t in spoken_captions if " tune on " not in t})
    neat_of = draw(scenes, codecs.get("image_codec"), None)
    pictures_of = draw(scenes, codecs.get("image_codec"), rng)

    how_often = even_weights({caption for caption in map(language.core, spoken_captions) if " tune on " in caption})
    spoken_draw, spoken_play, look, listen = [], [], [], []
    for text in spoken_captions:
        caption = language.core(text)
        modality, met, to_make, made, seen = (
            ("music", tunes_of, playable, spoken_play, listen) if " tune on " in caption
            else ("image", pictures_of, neat_of, spoken_draw, look)
        )  # fmt: skip
        if not met[caption] or not to_make[caption]:
            continue
        for voice, codes in utterances[text]:
            item = block(modality, rng.choice(met[caption]))
            if text != caption:  # a request: hear it, then draw or play it
                for _ in range(round(TUNES * how_often[caption]) if modality == "music" else 1):
                    answer = block(modality, rng.choice(to_make[caption]))
                    made.append(turn([block("speech", codes)], [transcript(text), answer]))
            else:  # a caption: the spoken answer to a question about the item
                question = rng.choice(language.RULES["look" if modality == "image" else "listen"])
                asked = [c for v, c in utterances[question] if v == voice]
                reply = [caption, block("speech", codes)]
                if asked and rng.random() < 0.7:
                    seen.append(turn([item, block("speech", rng.choice(asked))], [transcript(question), *reply]))
                else:
                    seen.append(turn([item, f"{question} answer aloud"], reply))
    rows.write("spoken_draw", split, spoken_draw)
    rows.write("spoken_play", split, spoken_play)
    rows.write("look", split, look)
    rows.write("listen", split, listen)
    if split == "train":
        told_play_rows(rows, utterances, playable)
    speech_codec = codecs.get("speech_codec")
    rows.write("spoken_say", split, sayings(by_voice, speech_codec, split, rng))
    rows.write("questions", split, small_talk(utterances, by_voice, rng))


def told_play_rows(rows: Rows, utterances: dict, playable: dict):
    """Tunes by the transcript alone: the recording before it says something else. Of what nobody speaks, too.

    Who answers few spoken requests, each heard often, learns which recording goes with which tune.
    """
    rng = random.Random("told")
    recordings = [codes for said in utterances.values() for _, codes in said]
    captions = sorted(playable)
    made = []
    for caption in rng.choices(captions, weights=[len(playable[c]) ** 0.5 for c in captions], k=TOLD):
        asked = caption if rng.random() < 1 / 2 else request(caption, rng)
        heard = transcript(f"{rng.choice(language.RULES['play'])} {asked}")
        recording, tune = block("speech", rng.choice(recordings)), block("music", rng.choice(playable[caption]))
        made.append(turn([recording], [heard, tune]))
    rows.write("told_play", "train", made, learned_after=RESPONSE)


def transcript(text: str) -> dict:
    return {"type": "transcript", "text": text}


def draw(captions: list[str], codec, rng: random.Random | None) -> dict[str, list[np.ndarray]]:
    """A picture for every caption, a neat one without `rng`: {caption: [codes [64]]}."""
    images = [pictures.draw(language.parse_scene(caption), rng) for caption in captions]
    values = [np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1 for image in images]
    return {caption: [codes[0]] for caption, codes in zip(captions, codec_io.encode(codec, values), strict=True)}


def sayings(names: Iterable[str], codec, split: str, rng: random.Random):
    """Requests "say X", answered with X in the voice that asks."""
    for voice in names:
        texts = [language.sample("speech_request", rng, split == "heldout") for _ in range(SAYINGS[split])]
        inner = [language.core(text) for text in texts]
        asked, replies = (encode(codec, [voices.say_at_pace(t, voice) for t in side]) for side in (texts, inner))
        for text, said, question, reply in zip(texts, inner, asked, replies, strict=True):
            yield turn([block("speech", question[0])], [transcript(text), said, block("speech", reply[0])])


def small_talk(utterances: dict, by_voice: dict, rng: random.Random):
    """Greetings and questions, typed or spoken, answered in text or aloud in the same voice."""
    for question, answer in language.ANSWERS.items():
        said = defaultdict(list)
        for voice, codes in utterances[answer]:
            said[voice].append(codes)
        for voice, codes in utterances[question]:
            if said[voice]:
                reply = block("speech", rng.choice(said[voice]))
                yield turn([block("speech", codes)], [transcript(question), answer, reply])
                yield turn([block("speech", voice_window(voice, by_voice, rng)), f"{question} answer aloud"],
                           [answer, reply])  # fmt: skip
        yield turn([question], [answer])
