"""The codecs: one self-contained module each, registered with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel

from .speech_tokenizer import SpeechTokenizerConfig, SpeechTokenizerModel


CODECS = (SpeechTokenizerModel,)

for codec in CODECS:
    AutoConfig.register(codec.config_class.model_type, codec.config_class)
    AutoModel.register(codec.config_class, codec)

__all__ = ["SpeechTokenizerConfig", "SpeechTokenizerModel"]
