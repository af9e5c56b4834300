"""CLIP-I: cosine of two pictures by any CLIP checkpoint, with its interval. AnyGPT's 0.65 on COCO is of this kind."""

import datasets
import evaluate

from processing_anygpt.judging.embeddings import cosines, image_vectors
from processing_anygpt.judging.scores import item_result

_INPUTS = """
Args:
    predictions: list of pictures made (paths, or PIL images).
    references: list of the real pictures, one for each.
    checkpoint: folder or hub id of a CLIP model, with its processor.
    device, batch_size: where and how many at once.
    resamples, level, seed: of the bootstrap interval.
Returns:
    {"clip_i": mean cosine, -1 to 1; "low", "high": its interval; "items"}. Not to be compared with `clip_score`, which
    is of pictures and texts and much lower.
"""


class CLIPI(evaluate.Metric):
    def _info(self):
        features = {"predictions": datasets.Image(decode=False), "references": datasets.Image(decode=False)}
        return evaluate.MetricInfo(
            description="Mean cosine of CLIP's vectors of a made picture and of the real one.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(features),
            reference_urls=["https://arxiv.org/abs/2402.12226"],
        )

    def _compute(
        self, predictions, references, checkpoint, device="cpu", batch_size=16, resamples=1000, level=0.95, seed=0
    ):
        made = image_vectors(predictions, checkpoint, device, batch_size)
        real = image_vectors(references, checkpoint, device, batch_size)
        return item_result("clip_i", cosines(made, real), None, resamples, level, seed)
