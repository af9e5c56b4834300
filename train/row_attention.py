"""Attention for packs on CPUs, one row after another: `attn_implementation: row_by_row`.

With a mask every pair of ids in a pack costs time, and most of them are of different rows. Here each row attends to
itself, causally, as in the varlen kernels of flash attention on GPUs; no mask is made.
"""

from itertools import pairwise

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "row_by_row"


@torch.compiler.disable  # the lengths differ from pack to pack
def row_by_row(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    position_ids: torch.Tensor,
    dropout: float = 0.0,
    **others,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers.

    Args:
        query: [1, heads, L, head_dim]; key, value: [1, heads that keys have, L, head_dim].
        position_ids: [1, L]; a row begins at each 0.

    Returns:
        [1, L, heads, head_dim], and no weights.

    Raises:
        ValueError: padded rows, or a backbone whose attention does more.
    """
    more = [name for name in ("softcap", "sliding_window", "s_aux", "position_bias") if others.get(name) is not None]
    if len(query) > 1 or more:
        what = f"a backbone with {more[0]}" if more else f"{len(query)} padded rows"
        raise ValueError(f"attn_implementation: {NAME} is for packs and causal attention, not for {what}. Use sdpa.")
    starts = (position_ids[0] == 0).nonzero()[:, 0].tolist()
    lengths = [end - start for start, end in pairwise([*starts, query.shape[2]])]
    with torch.autocast(query.device.type, enabled=False):
        # In float32: the backward pass of a CPU's sdpa takes three times as long in bfloat16.
        rows = zip(*(heads.float().split(lengths, dim=2) for heads in (query, key, value)), strict=True)
        attended = [
            F.scaled_dot_product_attention(*row, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=True)
            for row in rows
        ]
    return torch.cat(attended, dim=2).transpose(1, 2).to(query.dtype), None


def no_mask(*arguments, **options) -> None:
    """What transformers asks for a mask."""


AttentionInterface.register(NAME, row_by_row)
AttentionMaskInterface.register(NAME, no_mask)
