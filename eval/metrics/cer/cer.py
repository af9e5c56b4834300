"""Character error rate with its bootstrap interval, by jiwer."""

import datasets
import evaluate
import jiwer

from processing_anygpt.judging.normalisers import normalised_pairs
from processing_anygpt.judging.scores import item_result

_INPUTS = """
Args:
    predictions: list of texts, what was recognised.
    references: list of texts, what was said.
    normaliser: "none" (default), "basic" or "whisper_english"; see `processing_anygpt.judging.normalisers`.
    spelling: JSON file of British spellings for "whisper_english"; default: those of the wheel whisper-normalizer.
    resamples, level, seed: of the bootstrap interval.
Returns:
    {"cer": characters wrong, missing and extra over characters said, of all items together; "low", "high": its
    interval; "items": the rate of each; "weights": characters said in each, spaces between words among them}.
"""


class CER(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Character error rate: edits from prediction to reference over characters of the reference.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
            reference_urls=["https://github.com/jitsi/jiwer"],
        )

    def _compute(self, predictions, references, normaliser="none", spelling=None, resamples=1000, level=0.95, seed=0):
        rates, characters = [], []
        for said, heard in normalised_pairs(predictions, references, normaliser, spelling):
            output = jiwer.process_characters(said, heard)
            rates.append(output.cer)
            characters.append(len(output.references[0]))
        return item_result("cer", rates, characters, resamples, level, seed)
