"""CIDEr-D of captions with its bootstrap interval (Vedantam et al. 2015), as pycocoevalcap's `Cider` counts it."""

import collections
import math

import datasets
import evaluate

from processing_anygpt.judging.ptb import tokens
from processing_anygpt.judging.scores import item_result

ORDERS = 4  # n-grams of 1 to 4 words
SIGMA = 6.0  # of the penalty for a length other than the reference's, in words
TOKENIZERS = ("ptb", "stanford", "none")

_INPUTS = """
Args:
    predictions: list of captions.
    references: list of lists of captions, at least one each. How rare an n-gram is, is counted over these references:
        scores of different sets of items can't be compared, and one item alone scores 0.
    tokenizer: "ptb" (default; no Java), "stanford" (the Java program of the COCO server, through the package
        pycocoevalcap, which carries it; needs java), or "none" (split at spaces).
    resamples, level, seed: of the bootstrap interval; the counts stay those of all items.
Returns:
    {"cider": mean over items, 0 to 10 (papers print it times 100); "low", "high": its interval; "items"}.
"""


class CIDEr(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="CIDEr-D: agreement of a caption with several reference captions, by rare n-grams.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": text, "references": datasets.List(text)}),
            reference_urls=["https://github.com/salaniz/pycocoevalcap"],
        )

    def _compute(self, predictions, references, tokenizer="ptb", resamples=1000, level=0.95, seed=0):
        if not predictions or not all(references):
            raise ValueError("Got no predictions, or one without references; give at least one text of each.")
        if tokenizer not in TOKENIZERS:
            raise ValueError(f"Got tokenizer {tokenizer!r}; allowed are {', '.join(TOKENIZERS)}.")
        cut = _stanford if tokenizer == "stanford" else _own
        said = [_ngrams(words) for words in cut(predictions, tokenizer)]
        flat = iter(cut([text for texts in references for text in texts], tokenizer))
        meant = [[_ngrams(next(flat)) for _ in texts] for texts in references]

        items_with = collections.Counter(ngram for group in meant for ngram in set().union(*group))
        rarity = _Rarity(items_with, math.log(len(said)))
        return item_result("cider", [rarity.score(*pair) for pair in zip(said, meant)], None, resamples, level, seed)


class _Rarity:
    """Weighs n-grams by how few items have them in a reference: log(items / items with it)."""

    def __init__(self, items_with, log_items):
        self.items_with, self.log_items = items_with, log_items

    def weighted(self, counts):
        """n-gram counts of a caption -> (a dict n-gram: weight for each order, their norms, number of bigrams)."""
        vectors = [{} for _ in range(ORDERS)]
        for ngram, count in counts.items():
            vectors[len(ngram) - 1][ngram] = count * (self.log_items - math.log(max(1, self.items_with[ngram])))
        norms = [math.sqrt(sum(weight * weight for weight in vector.values())) for vector in vectors]
        # The original takes the number of bigrams for the length of a caption.
        return vectors, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2)

    def score(self, said, meant):
        """CIDEr-D of one caption against its references: 10 times the mean over orders and references."""
        vectors, norms, length = self.weighted(said)
        total = 0.0
        for reference in meant:
            others, other_norms, other_length = self.weighted(reference)
            penalty = math.exp(-((length - other_length) ** 2) / (2 * SIGMA**2))
            for vector, norm, other, other_norm in zip(vectors, norms, others, other_norms):
                # Clipped: a word said more often than in the reference gains nothing.
                shared = sum(min(w, other[ngram]) * other[ngram] for ngram, w in vector.items() if ngram in other)
                if norm and other_norm:
                    total += penalty * shared / (norm * other_norm)
        return 10 * total / (ORDERS * len(meant))


def _ngrams(words):
    spans = ((start, start + n) for n in range(1, ORDERS + 1) for start in range(len(words) - n + 1))
    return collections.Counter(tuple(words[start:end]) for start, end in spans)


def _own(texts, tokenizer):
    return [text.split() if tokenizer == "none" else tokens(text) for text in texts]


def _stanford(texts, tokenizer):
    try:
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    except ImportError:
        raise ValueError("The tokenizer 'stanford' needs `pip install pycocoevalcap` and java; 'ptb' needs neither.")
    try:
        lines = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    except FileNotFoundError:
        raise ValueError("The tokenizer 'stanford' needs the program java; 'ptb' needs none.")
    return [lines[i][0].split() for i in range(len(texts))]
