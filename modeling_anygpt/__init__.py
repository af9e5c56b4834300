"""Everything with weights. Importing it registers AnyGPT and its codecs with the Auto classes of transformers."""

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM

from . import codecs
from .configuration_anygpt import CONTROL_TOKENS, AnyGPTConfig, ModalitySpec, check_compatible, find_modality
from .generation_anygpt import ModalityGrammar
from .modeling_anygpt import AnyGPTForCausalLM

AutoConfig.register(AnyGPTConfig.model_type, AnyGPTConfig)
AutoModelForCausalLM.register(AnyGPTConfig, AnyGPTForCausalLM)
AutoModelForMultimodalLM.register(AnyGPTConfig, AnyGPTForCausalLM)

__all__ = [
    "CONTROL_TOKENS",
    "AnyGPTConfig",
    "AnyGPTForCausalLM",
    "ModalityGrammar",
    "ModalitySpec",
    "check_compatible",
    "codecs",
    "find_modality",
]
