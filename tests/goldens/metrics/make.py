"""Scores of fixed inputs by the reference implementations: writes the JSON files of this folder.

    python tests/goldens/metrics/make.py

Needs java, and pip install jiwer sacrebleu whisper-normalizer pycocoevalcap torchmetrics scipy speechmos.
"""

import json
import sys
import tempfile
from pathlib import Path

import jiwer
import numpy as np
import sacrebleu
import scipy.linalg
import torch
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from speechmos import dnsmos
from torchmetrics.functional.multimodal.clip_score import _clip_score_update
from torchmetrics.image.fid import _compute_fid
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
import tiny_judges  # noqa: E402

SPOKEN = [  # (said, heard)
    ("Good morning, Mr. Brown!", "good morning mister brown"),
    ("He'd been to the theatre at 10:30.", "he had been to the theater at ten thirty"),
    ("um, it costs twenty-five dollars", "It costs $25."),
    ("THE COLOUR OF THE NEIGHBOUR'S JEWELLERY", "the color of the neighbors jewelry"),
    ("Don't you think she's gonna win?", "dont you think she is going to win"),
    ("[noise] one hundred and one dalmatians", "101 dalmatians"),
    ("the quick brown fox jumps over the lazy dog", "a quick brown fox jumped over lazy dogs today"),
    ("nothing was heard", ""),
    ("São Paulo is naïve", "sao paulo is naive"),
    ("one  two   three", "one two three"),
]

CAPTIONED = [  # (caption, references)
    (
        "A man is riding a wave on a surfboard.",
        [
            "A man riding a wave on top of a surfboard.",
            "A surfer rides a large wave in the ocean.",
            "The man's surfboard is white, and he's on a wave!",
            "A person surfing",
            "a man surfs a wave at the beach",
        ],
    ),
    (
        "a black-and-white photo of two dogs",
        [
            "Two dogs don't look at the camera in a black-and-white photo.",
            "A photo of two dogs (black and white).",
            "Two dogs sit on the grass; one's asleep.",
            "The dogs' owner isn't there",
            "two dogs, two dogs, two dogs",
        ],
    ),
    (
        "two dogs two dogs two dogs two dogs",
        ["A cat sits on a bench.", "The cat's bench", "a bench with a cat on it"],
    ),
    (
        "A clock tower in a city at night with a lot of people walking around it and some cars on the street",
        ["A clock tower at night.", 'A tower with a clock that says "10:30"', "The clock tower of the city is lit."],
    ),
    ("", ["A plate of food.", "Food on a plate & a fork."]),
    (
        "A plate of food with broccoli.",
        ["A plate of food.", "Broccoli and rice on a plate - with a fork -- on a table."],
    ),
    ("a bus", ["A double-decker bus on St. James St. in London", "A red bus w/ its doors open at 5:30 p.m."]),
]

SENTENCES = """\
A man riding a wave on top of a surfboard.
A woman's hand holds a dog's leash.
Two men don't look at the camera.
The boys' team is playing; they can't lose.
A black-and-white photo of a street.
A close up of a sandwich - with fries -- on a plate.
Wow!! A dog?? Really?
A dog and/or a cat sit.
A sign that says "STOP" and one that says 'no parking'.
A bus (red) drives by [twice].
A clock reading 10:30 a.m. on a wall.
The U.S. flag flies over St. Mary's church on Main St.
5 people at 50% off for $5.99 each
A #1 fan & a friend of no. 5
A group of 1,000 sheep, 1/2 of them white
A 1950's car, a 1950s car and the '60s style
A grey car of a dark colour in the centre of the theatre
cannot gonna gotta wanna gimme lemme
I'm we're you've she'll he'd it's that's y'all
It is... a cat…and a dog
A café with naïve art
Two dogs.One cat.
A man *wearing* a hat
rock 'n' roll at 6 o'clock with Mr. O'Brien and Dr. Jones
A couple of zebra standing in the grass .
A man w/ a hat in an a/c unit
“Quoted” text – and a man’s hat, don’t
20 ft. tall, 3 lbs. of food, etc.
A 12-year-old boy on a 3-tier cake at 5:00pm
a man :) smiling :-(
'Tis the season
plan B.
+5 -5 5-6 5 - 6 5+6 5x6 5*6 5=6
salt &amp; pepper M&M's A&W
24/7 black/white/red 50/50
the sun. He sat in it.
A skateboarder's trick; others' tricks
#hashtag @handle http://example.com/page, there
a man,, and a woman ,there
""".splitlines()


def write(name: str, content: dict) -> None:
    (HERE / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def error_rates() -> dict:
    normalisers = {"none": str, "basic": BasicTextNormalizer(), "whisper_english": EnglishTextNormalizer()}
    scores = {}
    for name, normaliser in normalisers.items():
        said, heard = ([normaliser(pair[side]) for pair in SPOKEN] for side in (0, 1))
        scores[name] = {
            "references": said,
            "predictions": heard,
            "wer": jiwer.wer(said, heard),
            "cer": jiwer.cer(said, heard),
            "wer_items": [jiwer.wer(*pair) for pair in zip(said, heard, strict=True)],
            "cer_items": [jiwer.cer(*pair) for pair in zip(said, heard, strict=True)],
        }
    return {"by": "jiwer, whisper_normalizer", "pairs": SPOKEN, "scores": scores}


def captions() -> dict:
    def tokenised(texts):
        return PTBTokenizer().tokenize({i: [{"caption": text} for text in group] for i, group in enumerate(texts)})

    meant, said = tokenised([references for _, references in CAPTIONED]), tokenised([[c] for c, _ in CAPTIONED])
    cider, cider_items = Cider().compute_score(meant, said)
    bleu, _ = Bleu(4).compute_score(meant, said, verbose=0)
    references = [references for _, references in CAPTIONED]
    longest = max(map(len, references))
    streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(longest)]
    return {
        "by": "pycocoevalcap (CoreNLP's PTBTokenizer, Cider, Bleu), sacrebleu",
        "captions": CAPTIONED,
        "tokens": [[said[i][0], meant[i]] for i in range(len(said))],
        "cider": float(cider),
        "cider_items": [float(score) for score in cider_items],
        "coco_bleu": [float(score) for score in bleu],
        "sacrebleu": sacrebleu.BLEU().corpus_score([caption for caption, _ in CAPTIONED], streams).score,
        "sacrebleu_items": [sacrebleu.sentence_bleu(*pair).score for pair in CAPTIONED],
    }


def sentences() -> dict:
    cut = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(SENTENCES)})
    return {"by": "pycocoevalcap's PTBTokenizer", "sentences": {text: cut[i][0] for i, text in enumerate(SENTENCES)}}


def frechet() -> dict:
    draw = np.random.RandomState(0)
    cases = {}
    for name, (n, m, d) in {"more vectors than dimensions": (40, 30, 5), "fewer": (6, 7, 12)}.items():
        a, b = draw.standard_normal((n, d)).round(3), (2 * draw.standard_normal((m, d)) + 0.5).round(3)
        moments = [(side.mean(0), np.cov(side, rowvar=False)) for side in (a, b)]
        (mean_a, cov_a), (mean_b, cov_b) = moments
        root = scipy.linalg.sqrtm(cov_a @ cov_b)
        by_scipy = np.square(mean_a - mean_b).sum() + np.trace(cov_a + cov_b - 2 * root.real)
        by_torchmetrics = _compute_fid(*(torch.tensor(value) for moment in moments for value in moment))
        values = {"scipy": float(by_scipy), "torchmetrics": float(by_torchmetrics)}
        cases[name] = {"first": a.tolist(), "second": b.tolist(), **values}
    return {"by": "scipy.linalg.sqrtm in the formula of pytorch-fid; torchmetrics", "cases": cases}


class TensorCLIP(CLIPModel):
    """torchmetrics 1.9 takes what transformers 4 returned: tensors."""

    def get_image_features(self, pixel_values):
        return super().get_image_features(pixel_values).pooler_output

    def get_text_features(self, input_ids, attention_mask):
        return super().get_text_features(input_ids, attention_mask).pooler_output


def clip() -> dict:
    with tempfile.TemporaryDirectory() as folder:
        tiny_judges.clip(Path(folder))
        model = TensorCLIP.from_pretrained(folder).eval()
        image_processor = AutoImageProcessor.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)

    def processor(images=None, text=None, return_tensors="pt", padding=True):
        if images is not None:
            return image_processor(images=images, return_tensors=return_tensors)
        return tokenizer(text, padding=padding, return_tensors=return_tensors)

    pictures = [torch.from_numpy(np.asarray(tiny_judges.picture(i)).transpose(2, 0, 1).copy()) for i in range(4)]
    with torch.no_grad():  # the public function sets what is below 0 to 0
        text, _ = _clip_score_update(pictures, tiny_judges.CAPTIONS, model, processor)
        image, _ = _clip_score_update(pictures[:-1], pictures[1:], model, processor)
    return {
        "by": "torchmetrics' CLIPScore (100 times the cosine)",
        "text": text.tolist(),
        "next_image": image.tolist(),
    }


def quality() -> dict:
    wave = tiny_judges.sound(0, 9.1, 16_000)
    scores = {name: float(value) for name, value in dnsmos.run(wave, sr=16_000).items()}
    return {"by": "speechmos 0.0.1.1, tiny_judges.sound(0, 9.1, 16000)", "scores": scores}


if __name__ == "__main__":
    torch.set_num_threads(1)
    write("errors.json", error_rates())
    write("captions.json", captions())
    write("ptb.json", sentences())
    write("frechet.json", frechet())
    write("clip.json", clip())
    write("dnsmos.json", quality())
