"""Fréchet audio distance of two sets of sounds (Kilgour et al. 2019), with its interval."""

import datasets
import evaluate
import numpy

from processing_anygpt.judging.embeddings import sound_vectors
from processing_anygpt.judging.scores import frechet_result

_INPUTS = """
Args:
    predictions: list of sounds made (paths, or waveforms [T] in -1 to 1), or of their features (vectors [D]).
    references: as many real ones, of the same kind.
    checkpoint: whose features (for sounds only): folder or hub id of a CLAP model or of another audio model. The name
        of the judge belongs to the score; VGGish, the first paper's, is no model of transformers: give its features.
    sampling_rate: Hz of waveforms; without it, lists of numbers are features.
    device, batch_size: where and how many at once.
    resamples, level, seed: of the interval, from the spread of the bootstrap.
Returns:
    {"frechet_audio_distance": 0 or more, lower is better; "low", "high": its interval}. It falls with the number of
    sounds: compare only sets of one size.
"""


class FrechetAudioDistance(evaluate.Metric):
    def _info(self):
        kinds = (datasets.Value("string"), datasets.List(datasets.Value("float64")))
        return evaluate.MetricInfo(
            description="Squared Fréchet distance of normal distributions fitted to features of two sets of sounds.",
            citation="",
            inputs_description=_INPUTS,
            features=[datasets.Features({"predictions": kind, "references": kind}) for kind in kinds],
            reference_urls=["https://arxiv.org/abs/1812.08466"],
        )

    def _compute(
        self,
        predictions,
        references,
        checkpoint=None,
        sampling_rate=None,
        device="cpu",
        batch_size=16,
        resamples=30,
        level=0.95,
        seed=0,
    ):
        sides = (predictions, references)
        if checkpoint is not None:
            made, real = (sound_vectors(side, checkpoint, device, batch_size, sampling_rate) for side in sides)
        elif sampling_rate is not None or any(isinstance(item, str) for item in predictions):
            raise ValueError("Sounds need a checkpoint that makes features of them; or give the features.")
        else:
            made, real = ([numpy.asarray(vector)[None] for vector in side] for side in sides)
        return frechet_result("frechet_audio_distance", made, real, resamples, level, seed)
