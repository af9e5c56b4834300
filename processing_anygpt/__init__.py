"""Media <-> codes <-> token ids <-> messages. No weights live here.

Importing it registers model, codecs and processor with the Auto classes of transformers.
"""

from transformers import AutoProcessor

from modeling_anygpt import AnyGPTConfig

from .parts import AudioPart, ImagePart, MusicPart, Part, SpeechPart, TextPart, TranscriptPart, UnfinishedPart
from .processing_anygpt import AnyGPTProcessor
from .read_back import generate_best
from .vocabulary import add_modality_tokens

AutoProcessor.register(AnyGPTConfig, AnyGPTProcessor)
# Lets save_pretrained put the code beside the weights, for trust_remote_code=True.
AnyGPTProcessor.register_for_auto_class()

__all__ = [
    "AnyGPTProcessor",
    "AudioPart",
    "ImagePart",
    "MusicPart",
    "Part",
    "SpeechPart",
    "TextPart",
    "TranscriptPart",
    "UnfinishedPart",
    "add_modality_tokens",
    "generate_best",
]
