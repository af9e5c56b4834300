"""Arithmetic of a training step: does it fit into memory without checkpointing, and how many FLOPs is it worth.

Letters: h hidden size, f intermediate size, n layers, V vocabulary.
"""

import torch
from torch import nn

RESERVE = 0.9  # of the device's memory; the rest is for fragments, the loss's tiles and the allocator

# Dense bfloat16 peak of the data sheets, FLOP/s, by a part of the device's name.
PEAK_FLOPS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12}


def activation_bytes(text_config, tokens: int, computing: torch.dtype) -> int:
    """Bytes that the backbone's layers keep for the backward pass, without checkpointing: at most, within a factor 2.

    52 h + 10 f bytes a token and layer in bfloat16, twice that in float32. Counted on saved tensors of Llama and Qwen3
    layers with sdpa (bfloat16: 24 h + 8 f and 36 h + 8 f; with LoRA 40 h + 10 f and 48 h + 10 f).
    """
    h, f = text_config.hidden_size, text_config.intermediate_size
    each = (52 * h + 10 * f) * (1 if computing is torch.bfloat16 else 2)
    return each * text_config.num_hidden_layers * tokens


def state_bytes(model: nn.Module, frozen: bool, shards: int) -> int:
    """Bytes of weights, gradients and Adam's two moments on one of `shards` devices. Adapters hardly count."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return weights * (1 if frozen else 4) // shards


def needs_checkpointing(
    model: nn.Module, tokens: int, computing: torch.dtype, frozen: bool, shards: int, device_bytes: int | None
) -> bool:
    """Whether to recompute activations in the backward pass: only if they don't fit, for it costs a third more time.

    Args:
        tokens: of one forward pass on one device.
        computing: dtype of the matrix products.
        frozen: all but adapters is frozen.
        shards: devices that share the weights (FSDP2, ZeRO-3), else 1.
        device_bytes: memory of the device; None on a CPU, where nothing is recomputed.
    """
    if device_bytes is None:
        return False
    text_config = model.config.text_config
    needed = state_bytes(model, frozen, shards) + activation_bytes(text_config, tokens, computing)
    return needed > RESERVE * device_bytes


def flops_per_token(model: nn.Module, frozen: bool, context: float, learned: float) -> float:
    """FLOPs of one training step per id, without recomputation.

        passes * (2 * backbone weights + 2 * learned * head weights) + 3 * 2 * n * heads * head_dim * context

    A matrix product costs 2 FLOPs a weight and pass. Forward, gradient of the activations and gradient of the weights
    are 3 passes; with frozen weights 2 (the adapters' own products, under 1 %, are left out). Attention has no weights
    and always 3: scores and sums cost 4 * heads * head_dim FLOPs a pair, and a causal id sees half of its row.
    Embedding look-ups cost nothing.

    Args:
        model: an AnyGPT model, or its PEFT wrapper.
        frozen: all but adapters is frozen.
        context: mean length of the row an id is in, sum(length^2) / sum(length).
        learned: share of the ids that go through the head.
    """
    config = model.config.text_config
    head = model.get_output_embeddings().weight.numel()
    weights = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name and not name.endswith("lm_head")
    )
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    attention = 2 * config.num_hidden_layers * width * context
    return (2 if frozen else 3) * 2 * (weights + learned * head) + 3 * attention


def peak_flops() -> float | None:
    """bfloat16 peak of the first GPU, FLOP/s; None if there is none or its data sheet isn't listed here."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAK_FLOPS.items() if all(word in name for word in part.split())), None)
