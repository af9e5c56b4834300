"""The released SoundStorm (the copy in OpenMOSS/AnyGPT): one `.pt` of tensors, without a configuration."""

from pathlib import Path

from ..codecs import SoundStormConfig, SoundStormModel
from .pickles import build, check_tensors, meta_shapes, read_pickle

RELEASED_HEADS = 8
BLOCK = "net.conformer.layers.0."
# The tensors whose shapes tell the configuration, with their numbers of dimensions.
TELLING = {
    "net.to_logits.2.weight": 3,
    "semantic_token_emb.weight": 2,
    BLOCK + "attn.fn.to_q.weight": 2,
    BLOCK + "ff1.fn.fn.net.0.weight": 2,
    BLOCK + "conv.ds_conv.conv.weight": 3,
}


def read_official(checkpoint: str | Path, num_attention_heads: int = RELEASED_HEADS) -> tuple[SoundStormConfig, dict]:
    """Configuration, from the shapes, and tensors, memory-mapped. Raises ValueError unless it is a SoundStorm.

    Args:
        checkpoint: official state dict.
        num_attention_heads: the one number that leaves no trace in the shapes; the released model has 8.
    """
    tensors = read_pickle(checkpoint)
    lacking = [key for key, dims in TELLING.items() if key not in tensors or tensors[key].ndim != dims]
    if lacking:
        raise ValueError(
            f"{checkpoint} is no SoundStorm of AnyGPT's layout: it lacks {', '.join(lacking)}. Its first tensor is "
            f"{next(iter(tensors), 'none')}."
        )
    head, semantic, queries, feed_forward, conv = (tensors[key].shape for key in TELLING)
    if num_attention_heads < 1 or queries[0] % num_attention_heads:
        raise ValueError(f"Got {num_attention_heads} heads, allowed divisors of the attention width {queries[0]}.")
    config = SoundStormConfig(
        num_semantic_codes=semantic[0],
        codebook_size=head[2],
        num_quantizers=head[0],
        hidden_size=head[1],
        num_hidden_layers=len({key.split(".")[3] for key in tensors if key.startswith("net.conformer.layers.")}),
        num_attention_heads=num_attention_heads,
        head_dim=queries[0] // num_attention_heads,
        ff_mult=feed_forward[0] // head[1],
        conv_expansion_factor=conv[0] // head[1],
        conv_kernel_size=conv[2],
    )
    what = f"{checkpoint} is no SoundStorm of AnyGPT's layout"
    check_tensors(tensors, meta_shapes(SoundStormModel, config), what)
    return config, tensors


def load_official(checkpoint: str | Path, num_attention_heads: int = RELEASED_HEADS) -> SoundStormModel:
    """The released model, in float32 and eval mode; arguments and errors as in `read_official`."""
    return build(SoundStormModel, *read_official(checkpoint, num_attention_heads))
