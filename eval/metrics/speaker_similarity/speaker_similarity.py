"""Speaker similarity: cosine of two voices by an x-vector model (WavLM's) or Resemblyzer, with its interval."""

import datasets
import evaluate

from processing_anygpt.judging.embeddings import cosines, speaker_vectors
from processing_anygpt.judging.scores import item_result

_INPUTS = """
Args:
    predictions: list of sounds made (paths, or waveforms [T] in -1 to 1).
    references: list of recordings of the voice that each should have (the same kinds).
    checkpoint: folder or hub id of a speaker verification model with x-vectors (such as microsoft/wavlm-base-plus-sv),
        or "resemblyzer", whose weights are in its wheel. Scores of different judges can't be compared.
    sampling_rate: Hz of waveforms; files know theirs.
    device: where (x-vectors only).
    resamples, level, seed: of the bootstrap interval.
Returns:
    {"speaker_similarity": mean cosine, -1 to 1; "low", "high": its interval; "items"}. Silence scores 0.
"""


class SpeakerSimilarity(evaluate.Metric):
    def _info(self):
        sounds = (datasets.Value("string"), datasets.List(datasets.Value("float32")))
        return evaluate.MetricInfo(
            description="Mean cosine of the speaker vectors of what was made and of a recording of the voice.",
            citation="",
            inputs_description=_INPUTS,
            features=[datasets.Features({"predictions": a, "references": b}) for a in sounds for b in sounds],
            reference_urls=["https://arxiv.org/abs/2110.13900", "https://github.com/resemble-ai/Resemblyzer"],
        )

    def _compute(
        self,
        predictions,
        references,
        checkpoint,
        sampling_rate=None,
        device="cpu",
        resamples=1000,
        level=0.95,
        seed=0,
    ):
        made = speaker_vectors(predictions, checkpoint, device, sampling_rate)
        real = speaker_vectors(references, checkpoint, device, sampling_rate)
        return item_result("speaker_similarity", cosines(made, real), None, resamples, level, seed)
