"""BLEU with its bootstrap interval, by sacrebleu."""

import datasets
import evaluate
import numpy
import sacrebleu

from processing_anygpt.judging.scores import bootstrap, percentiles

_INPUTS = """
Args:
    predictions: list of texts.
    references: list of lists of texts, at least one each.
    tokenizer: one of sacrebleu's: "13a" (default, WMT's), "intl", "char", "none" (split at spaces), ...
    lowercase: judge without case.
    resamples, level, seed: of the bootstrap interval.
Returns:
    {"bleu": BLEU-4 of the corpus, 0 to 100, as sacrebleu counts it; "low", "high": its interval; "items": sentence
    BLEU of each item, of the orders that it has. The score of the corpus is not the mean of the items}.
"""


class BLEU(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="BLEU: precision of n-grams up to 4 with a penalty for brevity, of the whole corpus.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": text, "references": datasets.List(text)}),
            reference_urls=["https://github.com/mjpost/sacrebleu"],
        )

    def _compute(self, predictions, references, tokenizer="13a", lowercase=False, resamples=1000, level=0.95, seed=0):
        if not predictions or not all(references):
            raise ValueError("Got no predictions, or one without references; give at least one text of each.")
        if tokenizer not in sacrebleu.BLEU.TOKENIZERS:
            raise ValueError(f"Got tokenizer {tokenizer!r}; sacrebleu's are {', '.join(sacrebleu.BLEU.TOKENIZERS)}.")
        scorer = sacrebleu.BLEU(tokenize=tokenizer, lowercase=lowercase, effective_order=True)
        sentences = [scorer.sentence_score(said, list(meant)) for said, meant in zip(predictions, references)]
        # [items, 10]: matches and totals of the four orders, lengths of prediction and of the nearest reference
        counts = numpy.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in sentences])

        def corpus(chosen):
            sums = counts[chosen].sum(0).tolist()
            # The defaults of sacrebleu's corpus_bleu; it changes the lists that it is given.
            return sacrebleu.BLEU.compute_bleu(
                sums[:4], sums[4:8], sums[8], sums[9], smooth_method="exp", effective_order=False
            ).score

        drawn = bootstrap(corpus, len(counts), resamples=resamples, seed=seed)
        low, high = percentiles(drawn, level)
        return {"bleu": corpus(slice(None)), "low": low, "high": high, "items": [s.score for s in sentences]}
