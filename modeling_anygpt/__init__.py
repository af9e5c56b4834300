"""Everything with weights. Importing it registers AnyGPT with the Auto classes of transformers."""

from transformers import AutoConfig

from .configuration_anygpt import CONTROL_TOKENS, AnyGPTConfig, ModalitySpec, added_tokens, find_modality

AutoConfig.register("anygpt", AnyGPTConfig)

__all__ = ["CONTROL_TOKENS", "AnyGPTConfig", "ModalitySpec", "added_tokens", "find_modality"]
