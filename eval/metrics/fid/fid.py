"""FID: squared Fréchet distance of two sets of pictures by their features (Heusel et al. 2017), with its interval."""

import datasets
import evaluate
import numpy

from processing_anygpt.judging.embeddings import image_vectors
from processing_anygpt.judging.scores import frechet_result

_INPUTS = """
Args:
    predictions: list of pictures made (paths, or PIL images), or of their features (vectors [D]).
    references: as many real ones, of the same kind.
    checkpoint: whose features (for pictures only): a TorchScript file of Inception-v3 (`.pt`: FID as published), or a
        folder or hub id of a vision model (CLIP, DINOv2, ...: to be reported by its name, not as FID).
    device, batch_size: where and how many at once.
    resamples, level, seed: of the interval, from the spread of the bootstrap.
Returns:
    {"fid": 0 or more, lower is better; "low", "high": its interval}. It falls with the number of pictures: compare
    only sets of one size, of more pictures than the features have dimensions.
"""


class FID(evaluate.Metric):
    def _info(self):
        # Tried in this order: a vector would also pass for a picture.
        kinds = (datasets.List(datasets.Value("float64")), datasets.Image(decode=False))
        return evaluate.MetricInfo(
            description="Squared Fréchet distance of normal distributions fitted to features of two sets of pictures.",
            citation="",
            inputs_description=_INPUTS,
            features=[datasets.Features({"predictions": kind, "references": kind}) for kind in kinds],
            reference_urls=["https://arxiv.org/abs/1706.08500"],
        )

    def _compute(
        self,
        predictions,
        references,
        checkpoint=None,
        device="cpu",
        batch_size=16,
        resamples=30,
        level=0.95,
        seed=0,
    ):
        if predictions and isinstance(predictions[0], dict):
            if checkpoint is None:
                raise ValueError("Pictures need a checkpoint that makes features of them; or give the features.")
            sets = [image_vectors(side, checkpoint, device, batch_size) for side in (predictions, references)]
        else:
            sets = [numpy.array(side, numpy.float64) for side in (predictions, references)]
        made, real = ([vector[None] for vector in side] for side in sets)
        return frechet_result("fid", made, real, resamples, level, seed)
