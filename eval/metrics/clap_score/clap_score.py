"""CLAP score: cosine of a sound and a text by any CLAP checkpoint (Wu et al. 2023), with its interval."""

import datasets
import evaluate
import numpy

from processing_anygpt.judging.embeddings import cosines, sound_vectors, text_vectors, unit
from processing_anygpt.judging.scores import item_result

_INPUTS = """
Args:
    predictions: list of sounds (paths, or waveforms [T] in -1 to 1).
    references: list of texts, one for each. To judge captions of music, give the music as predictions all the same.
    checkpoint: folder or hub id of a CLAP model, with its processor.
    sampling_rate: Hz of waveforms; files know theirs.
    device, batch_size: where and how many at once.
    resamples, level, seed: of the bootstrap interval.
Returns:
    {"clap_score": mean cosine, -1 to 1; "low", "high": its interval; "items"}. Of a sound longer than 10 s all pieces
    of 10 s count alike (CLAP's own reader takes one at random).
"""


class CLAPScore(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        sounds = (text, datasets.List(datasets.Value("float32")))
        return evaluate.MetricInfo(
            description="Mean cosine of CLAP's vectors of a sound and of a text.",
            citation="",
            inputs_description=_INPUTS,
            features=[datasets.Features({"predictions": sound, "references": text}) for sound in sounds],
            reference_urls=["https://arxiv.org/abs/2211.06687"],
        )

    def _compute(
        self,
        predictions,
        references,
        checkpoint,
        sampling_rate=None,
        device="cpu",
        batch_size=16,
        resamples=1000,
        level=0.95,
        seed=0,
    ):
        pieces = sound_vectors(predictions, checkpoint, device, batch_size, sampling_rate)
        heard = numpy.stack([unit(vectors).mean(0) for vectors in pieces])
        texts = text_vectors(references, checkpoint, device, batch_size)
        return item_result("clap_score", cosines(heard, texts), None, resamples, level, seed)
