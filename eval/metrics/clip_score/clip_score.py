"""CLIP score: cosine of a picture and a text by any CLIP checkpoint (Hessel et al. 2021), with its interval."""

import datasets
import evaluate

from processing_anygpt.judging.embeddings import cosines, image_vectors, text_vectors
from processing_anygpt.judging.scores import item_result

_INPUTS = """
Args:
    predictions: list of pictures (paths, or PIL images).
    references: list of texts, one for each. To judge captions, give the pictures here as predictions all the same.
    checkpoint: folder or hub id of a CLIP model, with its processor.
    device, batch_size: where and how many at once.
    resamples, level, seed: of the bootstrap interval.
Returns:
    {"clip_score": mean cosine, -1 to 1; "low", "high": its interval; "items"}. Times 100 it is torchmetrics'
    CLIPScore; Hessel's is 2.5 times the cosine, 0 where that is negative. Pictures with pictures: `clip_i`.
"""


class CLIPScore(evaluate.Metric):
    def _info(self):
        features = {"predictions": datasets.Image(decode=False), "references": datasets.Value("string")}
        return evaluate.MetricInfo(
            description="Mean cosine of CLIP's vectors of a picture and of a text.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(features),
            reference_urls=["https://arxiv.org/abs/2104.08718"],
        )

    def _compute(
        self, predictions, references, checkpoint, device="cpu", batch_size=16, resamples=1000, level=0.95, seed=0
    ):
        pictures = image_vectors(predictions, checkpoint, device, batch_size)
        texts = text_vectors(references, checkpoint, device, batch_size)
        return item_result("clip_score", cosines(pictures, texts), None, resamples, level, seed)
