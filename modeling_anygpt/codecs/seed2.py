"""SEED-2: a picture <-> 32 codes, which become a CLIP-like embedding that a diffusion model can paint.

Ge et al., "Making LLaMA SEE and Draw with SEED Tokenizer", arXiv 2310.01218. EVA ViT-g (arXiv 2211.07636) and the
Q-Former of BLIP-2 (arXiv 2301.12597) are transformers' own; the Q-Former's queries attend causally here, so that the
codes are a sequence. `modeling_anygpt.conversion.seed2` reads the official files. This file imports nothing from its
siblings: it can be shipped beside the weights as remote code.

Shapes: B batch, S side of a picture in px, N codes of a picture, D width of the Q-Former.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

REDUCED = (256, 128, 32)  # widths of the layers that shrink each code's vector before all make the embedding


class Seed2TokenizerConfig(PreTrainedConfig):
    """Shape of a SEED-2 tokenizer. The defaults are the released one: 1.12 G parameters, 0.99 G of them EVA ViT-g.

    Args:
        vision_config: of the ViT; its `image_size` is the side of the pictures, px.
        qformer_config: of the Q-Former; `encoder_hidden_size` follows the ViT.
        num_query_tokens: codes of a picture, N.
        codebook_size, code_dimension: vectors of the codebook and their width.
        decoder_layers, decoder_heads: transformer between the codes and the embedding, as wide as the Q-Former.
        embedding_size: width of the embedding that `decode` returns.
        image_mean, image_std: of the red, green and blue that the ViT was trained with (CLIP's), for values in [0, 1].
    """

    model_type = "seed2_tokenizer"
    sub_configs = {"vision_config": Blip2VisionConfig, "qformer_config": Blip2QFormerConfig}

    vision_config: PreTrainedConfig | dict | None = None
    qformer_config: PreTrainedConfig | dict | None = None
    num_query_tokens: int = 32
    codebook_size: int = 8192
    code_dimension: int = 32
    decoder_layers: int = 4
    decoder_heads: int = 12
    embedding_size: int = 1024
    image_mean: list[float] | tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: list[float] | tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self, **kwargs):
        for name, config_class in self.sub_configs.items():
            value = getattr(self, name) or {}
            # A copy, also of a config object: two models that share one disturb each other's attention.
            setattr(self, name, config_class(**(value if isinstance(value, dict) else value.to_dict())))
        self.qformer_config.encoder_hidden_size = self.vision_config.hidden_size
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict:
        """As inherited, but with a plain `auto_map`: transformers takes every class with "Tokenizer" in its name for a
        text tokenizer and writes (slow, fast) pairs, which it then cannot read back for a model."""
        output = super().to_dict()
        if "auto_map" in output:
            names = output["auto_map"].items()
            output["auto_map"] = {auto: name if isinstance(name, str) else name[0] for auto, name in names}
        return output

    @property
    def image_size(self) -> int:
        """Side of the pictures, px."""
        return self.vision_config.image_size


@dataclass
class Seed2TokenizerOutput(ModelOutput):
    """What `forward` returns."""

    codes: torch.Tensor | None = None  # [B, 1, N] int64
    embeddings: torch.Tensor | None = None  # [B, embedding_size]


class Seed2TokenizerModel(PreTrainedModel):
    """Codec for pictures: `encode(values) -> codes`, `decode(codes) -> embeddings`.

    The embeddings approximate those of CLIP ViT-H/14; Stable Diffusion 2.1 unCLIP makes pictures of them.
    """

    config_class = Seed2TokenizerConfig
    main_input_name = "values"
    base_model_prefix = "seed2"
    _supports_sdpa = True

    def __init__(self, config: Seed2TokenizerConfig):
        super().__init__(config)
        width, count = config.qformer_config.hidden_size, config.num_query_tokens
        self.vision_model = Blip2VisionModel(config.vision_config)
        # LAVIS' `ln_vision` keeps torch's default epsilon, unlike the norms inside the ViT.
        self.vision_model.post_layernorm.eps = 1e-5
        self.query_tokens = nn.Parameter(torch.zeros(1, count, width))
        self.qformer = Blip2QFormerModel(config.qformer_config)
        self.to_code = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, config.code_dimension))
        self.codebook = nn.Embedding(config.codebook_size, config.code_dimension)
        self.from_code = nn.Sequential(
            nn.Linear(config.code_dimension, config.code_dimension),
            nn.Tanh(),
            nn.Linear(config.code_dimension, width),
        )
        self.positions = nn.Parameter(torch.zeros(1, count, width))
        self.decoder = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                config.decoder_heads,
                dim_feedforward=4 * width,
                dropout=0.0,
                activation="gelu",
                layer_norm_eps=1e-6,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.decoder_layers)
        )
        self.reduce = nn.Sequential(
            nn.Linear(width, REDUCED[0], bias=False),
            nn.ReLU(),
            nn.Linear(REDUCED[0], REDUCED[1], bias=False),
            nn.ReLU(),
            nn.Linear(REDUCED[1], REDUCED[2], bias=False),
        )
        self.to_embedding = nn.Linear(count * REDUCED[2], config.embedding_size)
        self.post_init()

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self:
            nn.init.normal_(self.query_tokens, std=0.02)
            nn.init.normal_(self.positions, std=0.02)

    @torch.no_grad()
    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """Pictures to codes.

        Args:
            values: [B, 3, S, S] float, RGB in [-1, 1], S = `config.image_size`; resized with bicubic interpolation
                and without cropping, as SEED-2 was trained (`processing_anygpt.media.image_to_array`).

        Returns:
            codes [B, 1, N], int64 in [0, codebook_size).
        """
        size = self.config.image_size
        if values.ndim != 4 or values.shape[1:] != (3, size, size):
            raise ValueError(
                f"Got pictures of shape {list(values.shape)}, allowed [B, 3, {size}, {size}]; resize them."
            )
        if not values.is_floating_point():
            raise ValueError(f"Got {values.dtype} pictures, allowed floats in [-1, 1]; divide by 127.5, subtract 1.")
        vectors = self.encode_vectors(values).float()  # the nearest code is searched in float32 whatever the dtype
        book = self.codebook.weight.float()
        # Nearest in squared Euclid; the square of the vector itself changes nothing.
        return (2 * vectors @ book.T - book.square().sum(1)).argmax(-1)[:, None]

    def encode_vectors(self, values: torch.Tensor) -> torch.Tensor:
        """Pictures as `encode` takes them -> vectors [B, N, code_dimension] before they are rounded to codes."""
        mean, std = (
            torch.tensor(numbers, device=values.device)[:, None, None]
            for numbers in (self.config.image_mean, self.config.image_std)
        )
        pixels = ((values.float() + 1) / 2 - mean) / std
        features = self.vision_model(pixels.to(self.dtype)).last_hidden_state
        queries = self.query_tokens.expand(len(values), -1, -1)
        count = queries.shape[1]
        # Added to the attention scores: a query sees itself and those before it.
        blocked = torch.full((count, count), torch.finfo(self.dtype).min, dtype=self.dtype, device=values.device)
        output = self.qformer(
            query_embeds=queries,
            attention_mask=blocked.triu(1)[None, None].expand(len(values), 1, -1, -1),
            encoder_hidden_states=features,
        )
        return self.to_code(output.last_hidden_state)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes [B, 1, N] -> embeddings [B, embedding_size], float32."""
        count = self.config.num_query_tokens
        if codes.ndim != 3 or codes.shape[1:] != (1, count) or not len(codes):
            raise ValueError(f"Got codes of shape {list(codes.shape)}, allowed [B, 1, {count}].")
        if codes.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"Got {codes.dtype} codes, allowed int64 or int32.")
        low, high = codes.min().item(), codes.max().item()
        if low < 0 or high >= self.config.codebook_size:
            raise ValueError(f"Got codes from {low} to {high}, allowed 0 to {self.config.codebook_size - 1}.")
        hidden = self.from_code(self.codebook(codes[:, 0])) + self.positions
        for layer in self.decoder:
            hidden = layer(hidden)
        return self.to_embedding(self.reduce(hidden).flatten(1)).float()

    def forward(self, values: torch.Tensor) -> Seed2TokenizerOutput:
        """Pictures [B, 3, S, S] through the codec."""
        codes = self.encode(values)
        return Seed2TokenizerOutput(codes=codes, embeddings=self.decode(codes))
