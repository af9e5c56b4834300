"""The codecs: one self-contained module each, registered with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel

from .seed2 import Seed2TokenizerConfig, Seed2TokenizerModel
from .soundstorm import SoundStormConfig, SoundStormModel
from .spectral import SpectralCodecConfig, SpectralCodecModel
from .speech_tokenizer import SpeechTokenizerConfig, SpeechTokenizerModel

for model in (SpeechTokenizerModel, SoundStormModel, SpectralCodecModel, Seed2TokenizerModel):
    AutoConfig.register(model.config_class.model_type, model.config_class)
    AutoModel.register(model.config_class, model)

__all__ = [
    "Seed2TokenizerConfig",
    "Seed2TokenizerModel",
    "SoundStormConfig",
    "SoundStormModel",
    "SpectralCodecConfig",
    "SpectralCodecModel",
    "SpeechTokenizerConfig",
    "SpeechTokenizerModel",
]
