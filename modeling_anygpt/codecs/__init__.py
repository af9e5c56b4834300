"""The codecs: one self-contained module each, registered with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel

from .soundstorm import SoundStormConfig, SoundStormModel
from .spectral import SpectralCodecConfig, SpectralCodecModel
from .speech_tokenizer import SpeechTokenizerConfig, SpeechTokenizerModel

for model in (SpeechTokenizerModel, SoundStormModel, SpectralCodecModel):
    AutoConfig.register(model.config_class.model_type, model.config_class)
    AutoModel.register(model.config_class, model)

__all__ = [
    "SoundStormConfig",
    "SoundStormModel",
    "SpectralCodecConfig",
    "SpectralCodecModel",
    "SpeechTokenizerConfig",
    "SpeechTokenizerModel",
]
