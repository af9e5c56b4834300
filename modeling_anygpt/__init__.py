"""Everything with weights. Importing it registers AnyGPT and its codecs with the Auto classes of transformers."""

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

from . import codecs
from .configuration_anygpt import CONTROL_TOKENS, AnyGPTConfig, ModalitySpec, check_compatible, find_modality
from .generation_anygpt import ModalityGrammar
from .modeling_anygpt import AnyGPTForCausalLM
from .streaming_anygpt import CodesPiece, PieceStreamer, TextPiece

AutoConfig.register(AnyGPTConfig.model_type, AnyGPTConfig)
AutoModelForCausalLM.register(AnyGPTConfig, AnyGPTForCausalLM)
AutoModelForMultimodalLM.register(AnyGPTConfig, AnyGPTForCausalLM)
AutoModelForImageTextToText.register(AnyGPTConfig, AnyGPTForCausalLM)

# Lets save_pretrained put the code beside the weights, for trust_remote_code=True.
AnyGPTConfig.register_for_auto_class()
AnyGPTForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = [
    "CONTROL_TOKENS",
    "AnyGPTConfig",
    "AnyGPTForCausalLM",
    "CodesPiece",
    "ModalityGrammar",
    "ModalitySpec",
    "PieceStreamer",
    "TextPiece",
    "check_compatible",
    "codecs",
    "find_modality",
]
