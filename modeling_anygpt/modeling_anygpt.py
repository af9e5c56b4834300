"""AnyGPT: a stock causal language model whose vocabulary holds the codes of every modality. Backbone and head only.

The state-dict keys are those of the backbone's own `...ForCausalLM`, so its checkpoints load without renaming and ours
load in it. L tokens, B batch, V vocabulary.
"""

import copy

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple, is_torchvision_available

from .configuration_anygpt import AnyGPTConfig
from .generation_anygpt import AnyGPTGenerationMixin

PIPELINE_CLASSES = ("AutoModelForMultimodalLM", "AutoModelForImageTextToText")  # by which pipelines load a model


class AnyGPTPreTrainedModel(PreTrainedModel):
    """Loading, saving and the switches of transformers. What the backbone cannot do, it refuses itself."""

    config_class = AnyGPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _skip_keys_device_placement = ["past_key_values"]


class AnyGPTForCausalLM(AnyGPTPreTrainedModel, AnyGPTGenerationMixin):
    """The language model: `.model` (any causal backbone of transformers) and `.lm_head`.

    Args:
        config: copied, so that two models may be built from one object.

    Raises:
        ValueError: the backbone's own head does more than a linear map and a soft cap (Cohere and Granite scale the
            logits, Phi adds a bias); running it as if it did not would be silently wrong.
    """

    # The pipeline demands torchvision of every model that takes images, even for text: without it we do not say so.
    input_modalities = ("text", "image", "audio") if is_torchvision_available() else ("text", "audio")
    output_modalities = ("text", "image", "audio")
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}

    def __init__(self, config: AnyGPTConfig):
        # transformers resets the attention implementation of a config object that a second model is built from, and
        # with it the causal mask of the first: every model owns its copy.
        super().__init__(copy.deepcopy(config))
        text_config = self.config.text_config
        self.model = AutoModel.from_config(text_config)
        self.lm_head = nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=False)
        # Gemma 2 caps its logits: cap * tanh(logits / cap).
        self.softcap = getattr(text_config, "final_logit_softcapping", None)
        scales = {getattr(text_config, key, None) for key in ("logit_scale", "logits_scaling")} - {None, 1.0}
        if scales or text_config.model_type == "phi":
            raise ValueError(
                f"Backbone {text_config.model_type!r} scales or shifts its logits, which AnyGPTForCausalLM does not. "
                "Use a Llama, Qwen, Gemma, Mistral, SmolLM or similar backbone."
            )
        self.post_init()

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As `PreTrainedModel.save_pretrained`; names the model for the Auto classes of the pipelines too."""
        # transformers writes the entry of one Auto class only. The same class serves all.
        if self._auto_class is not None:
            self.config.auto_map |= dict.fromkeys(PIPELINE_CLASSES, "modeling_anygpt.AnyGPTForCausalLM")
        super().save_pretrained(save_directory, *args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Next-token logits of text and codes alike.

        Args:
            input_ids: token ids [B, L] (or `inputs_embeds` [B, L, hidden]).
            attention_mask: [B, L], 1 for tokens and 0 for padding.
            labels: [B, L] token ids, -100 where there is no loss; adds `loss`, shifted by one inside.
            logits_to_keep: compute the last n positions only (0: all), or the positions of an index tensor.
            kwargs: what the backbone and the loss take besides (cumulative lengths of flash attention,
                `num_items_in_batch`, `output_hidden_states`).

        Returns:
            `CausalLMOutputWithPast` with logits [B, L or n, V] in the dtype of the weights.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state  # [B, L, hidden]
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, keep])
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["AnyGPTForCausalLM", "AnyGPTPreTrainedModel"]
