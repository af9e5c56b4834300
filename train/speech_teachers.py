"""Who teaches level 1 of the speech codec the words: phone labels, features on file, or a speech model.

A teacher has a `name` for the log and `loss(predicted, frames, wave) -> (loss, score)`: `predicted` [B, T, D] is the
codec's transformed level 1, `frames` [B, T] are positions in the training data, `wave` [B, samples] is their sound at
16 kHz. Loss and score are means over the batch; a score of 1 is perfect.
"""

import torch
from make_codec_data import PHONES
from torch.nn import functional as F
from transformers import AutoFeatureExtractor, AutoModel


class PhoneLabels:
    """Forced alignment needs no teacher. Labels int64 [F], -1 where unknown."""

    name = "phones right"

    def __init__(self, labels: torch.Tensor, width: int):
        if width < len(PHONES):
            raise ValueError(f"Got semantic_dimension {width}; phone labels need {len(PHONES)} or more.")
        if not -1 <= int(labels.min()) <= int(labels.max()) < len(PHONES):
            got = f"{int(labels.min())} to {int(labels.max())}"
            raise ValueError(f"Got phones from {got}, allowed -1 to {len(PHONES) - 1}.")
        self.labels = labels

    def loss(self, predicted, frames, wave):
        labels, logits = self.labels[frames], predicted[..., : len(PHONES)]  # the first are those of the phones
        known = labels >= 0
        if not known.any():
            return logits.sum() * 0, logits.new_zeros(())
        loss = F.cross_entropy(logits[known], labels[known], label_smoothing=0.1)
        return loss, (logits[known].argmax(-1) == labels[known]).float().mean()


class FrameFeatures:
    """Features [F, D] of any origin, one row a frame."""

    name = "cosine"

    def __init__(self, features: torch.Tensor, width: int):
        check_width(features.shape[-1], width, "The features on file have")
        self.features = features

    def loss(self, predicted, frames, wave):
        return distillation(predicted, self.features[frames].float())


class SpeechModel:
    """Mean of all hidden states of a speech model of the Hub: HuBERT taught the released SpeechTokenizers so. It hears
    the crop and no more: give it long ones."""

    name = "cosine"
    RATE = 16000  # Hz

    def __init__(self, source: str, width: int, device: torch.device):
        self.extractor = AutoFeatureExtractor.from_pretrained(source)
        model = AutoModel.from_pretrained(source).to(device).eval().requires_grad_(False)
        self.model = model.get_encoder() if model.config.is_encoder_decoder else model
        check_width(model.config.hidden_size, width, f"{source} has")
        self.source = source

    @torch.no_grad()
    def features(self, wave: torch.Tensor, count: int) -> torch.Tensor:
        """wave [B, samples] -> [B, count or a frame less, D]; models without padding lose the last frame."""
        sounds = list(wave.float().cpu().numpy())
        inputs = self.extractor(sounds, sampling_rate=self.RATE, return_tensors="pt")
        name = self.extractor.model_input_names[0]
        hidden = self.model(**{name: inputs[name].to(wave.device)}, output_hidden_states=True).hidden_states
        features = torch.stack(hidden).mean(0)[:, :count]
        if features.shape[1] < count - 1:
            raise ValueError(
                f"{self.source} gives {features.shape[1]} frames for {count} of the codec, allowed {count - 1} or "
                "more. Take a model of 50 frames a second, such as HuBERT, WavLM or Whisper."
            )
        return features

    def loss(self, predicted, frames, wave):
        features = self.features(wave, frames.shape[1])
        return distillation(predicted[:, : features.shape[1]], features)


def distillation(predicted: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SpeechTokenizer's continuous distillation (arXiv 2308.16692, section 3.2) between [B, T, D]: of the cosine of a
    dimension over time, -log sigmoid, which lies in 0.31 to 1.31. Returns the loss and the mean cosine."""
    cosine = F.cosine_similarity(predicted, features, dim=1)  # [B, D]
    return -F.logsigmoid(cosine).mean(), cosine.mean()


def check_width(got: int, width: int, whose: str) -> None:
    if got != width:
        raise ValueError(f"{whose} {got} dimensions, level 1 is to predict {width}. Set semantic_dimension: {got}.")
