"""SEED-2: the official `seed_quantizer.pt` and LAVIS' `eva_vit_g.pth` -> `Seed2TokenizerModel`.

The first file lacks the ViT (users of AnyGPT report 511 missing tensors: exactly those), the second is the ViT. Both
may be float16 or float32.
"""

import math
import re
import warnings
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from ..codecs.seed2 import Seed2TokenizerConfig, Seed2TokenizerModel
from .pickles import check_tensors, read_pickle, some

# Our names -> the official ones, applied in this order.
RENAMES = (
    (r"^vision_model\.embeddings\.class_embedding", "visual_encoder.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding", "visual_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding", "visual_encoder.patch_embed.proj"),
    (r"^vision_model\.encoder\.layers\.(\d+)\.", r"visual_encoder.blocks.\1."),
    (r"^vision_model\.post_layernorm", "ln_vision"),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.qkv\.", ".attn.qkv."),
    (r"\.self_attn\.projection\.", ".attn.proj."),
    (r"^qformer\.layernorm", "Qformer.bert.embeddings.LayerNorm"),
    (r"^qformer\.encoder", "Qformer.bert.encoder"),
    (r"attention\.attention\.", "attention.self."),
    (r"^codebook\.", "quantize.embedding."),
    (r"^to_code\.", "encode_task_layer."),
    (r"^from_code\.", "decode_task_layer."),
    (r"^positions$", "pos_embed_image"),
    (r"^decoder\.(\d+)\.", r"blocks_image.\1."),
    (r"\.self_attn\.in_proj_", ".attn.qkv."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.linear([12])\.", r".mlp.fc\1."),
    (r"^reduce\.", "image_down."),
    (r"^to_embedding\.", "distill_image_proj."),
)

# Tensors that the files hold, or may hold, and inference does not use: patterns of official names, with the reason.
# Those of training come from SEED's code (AILab-CVC/SEED, SEED_Tokenizer/lavis/models/blip2_models).
UNUSED = (
    "pos_embed",  # this and the next: rebuilds the Q-Former's output, a training objective
    "blocks.*",
    "Qformer.bert.embeddings.position_ids",  # this and the next four: the text half of the Q-Former
    "Qformer.bert.embeddings.word_embeddings.*",
    "Qformer.bert.embeddings.position_embeddings.*",
    "Qformer.bert.encoder.layer.*.intermediate.*",
    "Qformer.bert.encoder.layer.*.output.*",
    "Qformer.cls.*",
    "text_proj.*",  # this and the next three: BLIP-2's heads, of its first stage
    "vision_proj.*",
    "itm_head.*",
    "temp",
    "pos_embed_text",  # this and the next six: distillation into CLIP's text space, and the teachers
    "blocks_text.*",
    "text_down.*",
    "distill_text_proj.*",
    "Reverse_Qformer*",
    "reverse_tokens*",
    "clip_model.*",
    "text_encoder.*",
    "visual_encoder.norm.*",  # this and the next two: EVA's head; SEED takes the last block's output
    "visual_encoder.fc_norm.*",
    "visual_encoder.head.*",
    "visual_encoder.mask_token",
)

# The tensors whose shapes tell the configuration, with their numbers of dimensions.
TELLING = {
    "visual_encoder.patch_embed.proj.weight": 4,
    "visual_encoder.pos_embed": 3,
    "visual_encoder.blocks.0.mlp.fc1.weight": 2,
    "query_tokens": 3,
    "Qformer.bert.encoder.layer.0.intermediate_query.dense.weight": 2,
    "quantize.embedding.weight": 2,
    "distill_image_proj.weight": 2,
}


@dataclass(frozen=True)
class Target:
    """Where an official tensor goes."""

    name: str  # of our tensor
    shape: torch.Size  # of the official one
    third: int | None = None  # which third of our tensor's rows it is; None: all of it


def official_tensors(config: Seed2TokenizerConfig) -> dict[str, Target]:
    """Every official tensor that a model of this configuration needs, by its official name. Takes no memory.

    The ViT's start with "visual_encoder.", as in SEED's module; `eva_vit_g.pth` has them without it. Our bias of
    queries, keys and values is one tensor whose middle third, that of the keys, is zero and no official tensor.
    """
    with torch.device("meta"):
        own = Seed2TokenizerModel(config).state_dict()
    targets = {}
    for name, tensor in own.items():
        official = name
        for pattern, replacement in RENAMES:
            official = re.sub(pattern, replacement, official)
        if official.startswith("visual_encoder.") and official.endswith(".qkv.bias"):
            third = torch.Size([len(tensor) // 3])
            targets[official.replace("qkv.bias", "q_bias")] = Target(name, third, 0)
            targets[official.replace("qkv.bias", "v_bias")] = Target(name, third, 2)
        else:
            targets[official] = Target(name, tensor.shape)
    return targets


def is_unused(name: str, config: Seed2TokenizerConfig) -> bool:
    """Whether an official tensor that `official_tensors` does not name is known to be of no use for inference."""
    block = re.match(r"visual_encoder\.blocks\.(\d+)\.", name)  # SEED takes 39 of EVA's 40
    if block and int(block[1]) >= config.vision_config.num_hidden_layers:
        return True
    return any(fnmatchcase(name, pattern) for pattern in UNUSED)


def infer_config(tensors: dict[str, torch.Tensor], what: str) -> Seed2TokenizerConfig:
    """The configuration that official tensors have the shapes of.

    Numbers of heads leave no trace in them and stay the released ones, as does the share of EVA's blocks: all but the
    last. `what` names the files for the ValueError raised when a telling tensor is missing.
    """
    missing = [name for name, dims in TELLING.items() if name not in tensors or tensors[name].ndim != dims]
    if missing:
        raise ValueError(f"{what} is not SEED-2: it lacks {some(missing)}. Are the two files in each other's place?")
    patches, positions, vit_mlp, queries, qformer_mlp, codebook, embedding = (tensors[name].shape for name in TELLING)

    def count(prefix: str) -> int:
        numbers = {name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)}
        return len(numbers)

    return Seed2TokenizerConfig(
        vision_config=dict(
            hidden_size=patches[0],
            patch_size=patches[2],
            image_size=patches[2] * math.isqrt(positions[1] - 1),
            intermediate_size=vit_mlp[0],
            num_hidden_layers=count("visual_encoder.blocks.") - 1,
        ),
        qformer_config=dict(
            hidden_size=queries[2],
            intermediate_size=qformer_mlp[0],
            num_hidden_layers=count("Qformer.bert.encoder.layer."),
        ),
        num_query_tokens=queries[1],
        codebook_size=codebook[0],
        code_dimension=codebook[1],
        decoder_layers=count("blocks_image."),
        embedding_size=embedding[0],
    )


def read_official(
    seed_quantizer: str | Path,
    eva_vit_g: str | Path,
    config: Seed2TokenizerConfig | None = None,
) -> tuple[Seed2TokenizerConfig, dict[str, torch.Tensor]]:
    """Configuration, and the tensors that `official_tensors` names, memory-mapped.

    Arguments and errors as in `load_official`.
    """
    what = f"{seed_quantizer} with {eva_vit_g}"
    tensors = {f"visual_encoder.{name}": tensor for name, tensor in read_pickle(eva_vit_g).items()}
    tensors |= read_pickle(seed_quantizer)  # as the official loader: what both have is the quantizer's
    config = config or infer_config(tensors, what)
    try:
        targets = official_tensors(config)
    except (ArithmeticError, RuntimeError, AssertionError) as error:
        raise ValueError(f"{what} is not SEED-2: no model has such shapes ({error}).") from error
    tensors = {n: tensor for n, tensor in tensors.items() if n in targets or not is_unused(n, config)}
    unknown = sorted(tensors.keys() - targets.keys())
    if unknown and targets.keys() <= tensors.keys():
        warnings.warn(
            f"{seed_quantizer} and {eva_vit_g} hold all of SEED-2, and {len(unknown)} tensors nobody named to us. "
            f"They are left out: {', '.join(unknown)}.",
            stacklevel=2,
        )
        tensors = {name: tensors[name] for name in targets}
    check_tensors(tensors, {name: target.shape for name, target in targets.items()}, f"{what} is not this SEED-2")
    return config, tensors


def load_official(
    seed_quantizer: str | Path,
    eva_vit_g: str | Path,
    config: Seed2TokenizerConfig | None = None,
) -> Seed2TokenizerModel:
    """Reads the official files.

    Args:
        seed_quantizer: SEED-2's `seed_quantizer.pt`.
        eva_vit_g: LAVIS' `eva_vit_g.pth`.
        config: of the model in them; None: inferred from the shapes, with the released numbers of heads.

    Returns:
        The model in float32 and eval mode. Peak memory: its own, as the files are memory-mapped.

    Raises:
        ValueError: a file can't be read; a tensor is missing or of another shape.

    Tensors that neither the model needs nor `UNUSED` names are left out with a warning that lists them: the released
    file holds such, whose names could not be learned, and nothing can be taken for another where all is there.
    """
    config, tensors = read_official(seed_quantizer, eva_vit_g, config)
    with torch.device("meta"):
        model = Seed2TokenizerModel(config)
    state = {}
    for official, target in official_tensors(config).items():
        value = tensors.pop(official).to(torch.float32, copy=True)
        if target.third is None:
            state[target.name] = value
        else:
            thirds = state.setdefault(target.name, torch.zeros(3 * len(value))).chunk(3)
            thirds[target.third].copy_(value)
    model.load_state_dict(state, assign=True)
    return model.eval()
