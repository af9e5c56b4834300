"""DNSMOS P.835: how a listener would rate speech (Reddy et al. 2022), by the wheel speechmos; with its interval."""

import datasets
import evaluate
import speechmos.dnsmos

from processing_anygpt.judging.embeddings import read_sound
from processing_anygpt.judging.scores import item_result

RATE = 16_000  # Hz

_INPUTS = """
Args:
    predictions: list of sounds (paths, or waveforms [T] in -1 to 1). Loudness counts: scale alike what you compare.
    sampling_rate: Hz of waveforms; files know theirs.
    resamples, level, seed: of the bootstrap interval.
Returns:
    {"dnsmos": mean overall quality, 1 to 5; "low", "high": its interval; "items"; and by item "signal" (of the voice),
    "background" (lack of noise), "p808" (one number for all, ITU-T P.808)}. Sounds under 9 s are repeated.
"""


class DNSMOS(evaluate.Metric):
    def _info(self):
        sounds = (datasets.Value("string"), datasets.List(datasets.Value("float32")))
        return evaluate.MetricInfo(
            description="Quality of speech that listeners would hear, guessed by Microsoft's DNSMOS P.835.",
            citation="",
            inputs_description=_INPUTS,
            features=[datasets.Features({"predictions": sound}) for sound in sounds],
            reference_urls=["https://arxiv.org/abs/2110.01763"],
        )

    def _compute(self, predictions, sampling_rate=None, resamples=1000, level=0.95, seed=0):
        waves = (read_sound(sound, RATE, sampling_rate) for sound in predictions)
        judged = [speechmos.dnsmos.run(wave, sr=RATE) for wave in waves]
        result = item_result("dnsmos", [row["ovrl_mos"] for row in judged], None, resamples, level, seed)
        names = {"signal": "sig_mos", "background": "bak_mos", "p808": "p808_mos"}
        return result | {name: [float(row[key]) for row in judged] for name, key in names.items()}
