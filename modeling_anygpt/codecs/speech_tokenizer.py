"""SpeechTokenizer: 16 kHz mono speech <-> 50 frames a second of residual codes, whose first level carries the words.

Zhang et al., "SpeechTokenizer: Unified Speech Tokenizer for Speech Language Models", arXiv 2308.16692; the layers are
the SEANet of Encodec (arXiv 2210.13438). Written so that official checkpoints load with their own tensor names
(`modeling_anygpt.conversion.speech_tokenizer`). This file imports nothing from its siblings: it can be shipped beside
the weights as remote code.

Shapes: B batch, K codebooks (levels), T audio samples, T' frames, C channels.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


class SpeechTokenizerConfig(PreTrainedConfig):
    """Shape of a SpeechTokenizer. The defaults are the released 103.7 M parameter model.

    Args:
        sampling_rate: Hz of the audio.
        strides: up-sampling factors of the decoder, first to last; the encoder uses them reversed.
        n_filters: channels of the outermost convolution; each stride doubles them.
        dimension: width of the quantised vectors.
        semantic_dimension: width of the teacher features that level 1 was trained to predict.
        codebook_size: codes per level.
        num_codebooks: levels; the official configuration calls it `n_q`.
        lstm_layers, bidirectional: of the encoder's LSTM; the decoder's always runs forward only.
        residual_kernel_size, n_residual_layers, dilation_base: of the residual blocks.
        activation: name of a parameterless module of `torch.nn`.
    """

    model_type = "speech_tokenizer"

    sampling_rate: int = 16000
    strides: list[int] | tuple[int, ...] = (8, 5, 4, 2)
    n_filters: int = 64
    dimension: int = 1024
    semantic_dimension: int = 768
    codebook_size: int = 1024
    num_codebooks: int = 8
    lstm_layers: int = 2
    bidirectional: bool = True
    residual_kernel_size: int = 3
    n_residual_layers: int = 1
    dilation_base: int = 2
    activation: str = "ELU"

    def to_dict(self) -> dict:
        """As inherited, but with a plain `auto_map`: transformers takes every class with "Tokenizer" in its name for a
        text tokenizer and writes (slow, fast) pairs, which it then cannot read back for a model."""
        output = super().to_dict()
        if "auto_map" in output:
            names = output["auto_map"].items()
            output["auto_map"] = {auto: name if isinstance(name, str) else name[0] for auto, name in names}
        return output

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides)

    @property
    def frame_rate(self) -> float:
        """Frames per second (Hz)."""
        return self.sampling_rate / self.hop_length


class WeightNorm(nn.Module):
    """A convolution's `weight_g`, `weight_v` and `bias` in the layout of torch's old weight norm.

    The norm is over dimension 0 for transposed convolutions too, where dimension 0 is the input: upstream's choice.
    """

    def __init__(self, shape: tuple[int, int, int], bias: int):
        super().__init__()
        self.weight_g = nn.Parameter(torch.empty(shape[0], 1, 1))
        self.weight_v = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(bias))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))
        nn.init.constant_(self.weight_g, 3**-0.5)  # about the norm that kaiming_uniform_ with this slope gives a row
        nn.init.zeros_(self.bias)

    @property
    def weight(self) -> torch.Tensor:
        return self.weight_v * (self.weight_g / self.weight_v.norm(dim=(1, 2), keepdim=True))


class SpeechTokenizerConv1d(nn.Module):
    """Convolution with reflect padding so that [B, C, T] becomes [B, C', ceil(T / stride)]."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.conv = nn.ModuleDict({"conv": WeightNorm((out_channels, channels, kernel_size), out_channels)})
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer, length = self.conv["conv"], x.shape[-1]
        total = (self.kernel_size - 1) * self.dilation - (self.stride - 1)
        # Not causal: both sides, the larger half left (upstream), and more on the right to fill the last window.
        right = total // 2 - length % -self.stride
        left = total - total // 2
        if left or right:
            # Reflection needs more samples than it mirrors: a shorter input grows by zeros that are cut off again.
            short = max(0, max(left, right) - length + 1)
            x = F.pad(F.pad(x, (0, short)), (left, right), mode="reflect")
            x = x[..., : x.shape[-1] - short]
        return F.conv1d(x, layer.weight, layer.bias, stride=self.stride, dilation=self.dilation)


class SpeechTokenizerConvTranspose1d(nn.Module):
    """Transposed convolution trimmed so that [B, C, T] becomes [B, C', T * stride]."""

    def __init__(self, channels: int, out_channels: int, stride: int):
        super().__init__()
        self.convtr = nn.ModuleDict({"convtr": WeightNorm((channels, out_channels, 2 * stride), out_channels)})
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.convtr["convtr"]
        x = F.conv_transpose1d(x, layer.weight, layer.bias, stride=self.stride)
        right = self.stride // 2
        return x[..., self.stride - right : x.shape[-1] - right]


class SpeechTokenizerResidualBlock(nn.Module):
    """shortcut(x) + conv_1(act(conv_k(act(x)))) on [B, C, T], half the channels in between."""

    def __init__(self, config: SpeechTokenizerConfig, channels: int, dilation: int):
        super().__init__()
        activation = getattr(nn, config.activation)
        self.block = nn.Sequential(
            activation(),
            SpeechTokenizerConv1d(channels, channels // 2, config.residual_kernel_size, dilation=dilation),
            activation(),
            SpeechTokenizerConv1d(channels // 2, channels, 1),
        )
        self.shortcut = SpeechTokenizerConv1d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shortcut(x) + self.block(x)


class SpeechTokenizerLSTM(nn.Module):
    """LSTM over time with a skip connection: [B, C, T] -> [B, C, T], or [B, 2C, T] if bidirectional."""

    def __init__(self, channels: int, layers: int, bidirectional: bool):
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, layers, bidirectional=bidirectional)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(2, 0, 1)
        y, _ = self.lstm(x)
        return (y + x.repeat(1, 1, y.shape[-1] // x.shape[-1])).permute(1, 2, 0)


def residual_blocks(config: SpeechTokenizerConfig, channels: int) -> list[nn.Module]:
    """The residual blocks of one resolution, their dilations growing."""
    dilations = [config.dilation_base**i for i in range(config.n_residual_layers)]
    return [SpeechTokenizerResidualBlock(config, channels, dilation) for dilation in dilations]


class SpeechTokenizerEncoder(nn.Module):
    """[B, 1, T] -> [B, dimension, ceil(T / hop_length)]."""

    def __init__(self, config: SpeechTokenizerConfig):
        super().__init__()
        activation, channels = getattr(nn, config.activation), config.n_filters
        layers = [SpeechTokenizerConv1d(1, channels, 7)]
        for stride in reversed(config.strides):
            layers += residual_blocks(config, channels)
            layers += [activation(), SpeechTokenizerConv1d(channels, 2 * channels, 2 * stride, stride)]
            channels *= 2
        layers.append(SpeechTokenizerLSTM(channels, config.lstm_layers, config.bidirectional))
        channels *= 2 if config.bidirectional else 1
        layers += [activation(), SpeechTokenizerConv1d(channels, config.dimension, 7)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


class SpeechTokenizerDecoder(nn.Module):
    """[B, dimension, T'] -> [B, 1, T' * hop_length]."""

    def __init__(self, config: SpeechTokenizerConfig):
        super().__init__()
        activation, channels = getattr(nn, config.activation), config.n_filters * 2 ** len(config.strides)
        layers = [
            SpeechTokenizerConv1d(config.dimension, channels, 7),
            SpeechTokenizerLSTM(channels, config.lstm_layers, bidirectional=False),
        ]
        for stride in config.strides:
            layers += [activation(), SpeechTokenizerConvTranspose1d(channels, channels // 2, stride)]
            channels //= 2
            layers += residual_blocks(config, channels)
        layers += [activation(), SpeechTokenizerConv1d(channels, 1, 7)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


class SpeechTokenizerCodebook(nn.Module):
    """The vectors of one level: `embed` [codebook_size, dimension], a buffer because EMA, not gradients, trains it."""

    def __init__(self, config: SpeechTokenizerConfig):
        super().__init__()
        self.register_buffer("embed", torch.empty(config.codebook_size, config.dimension))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.embed)


class SpeechTokenizerQuantizer(nn.Module):
    """Residual vector quantiser: each level codes what the levels before it left over (nearest in squared Euclid)."""

    def __init__(self, config: SpeechTokenizerConfig):
        super().__init__()
        levels = [nn.ModuleDict({"_codebook": SpeechTokenizerCodebook(config)}) for _ in range(config.num_codebooks)]
        self.vq = nn.ModuleDict({"layers": nn.ModuleList(levels)})

    @property
    def codebooks(self) -> list[SpeechTokenizerCodebook]:
        return [level["_codebook"] for level in self.vq["layers"]]

    def encode(self, hidden: torch.Tensor, n_q: int, st: int) -> torch.Tensor:
        """hidden [B, dimension, T'] -> codes [B, n_q - st, T'] of levels st .. n_q - 1."""
        residual = hidden.float().transpose(1, 2)  # the nearest code is searched in float32 whatever the model's dtype
        codes = []
        for book in self.codebooks[st:n_q]:
            embed = book.embed.float()
            codes.append((2 * residual @ embed.T - embed.square().sum(1)).argmax(-1))
            residual = residual - embed[codes[-1]]
        return torch.stack(codes, 1)

    def lookup(self, codes: torch.Tensor, st: int) -> torch.Tensor:
        """codes [B, K, T'] of levels st .. st + K - 1 -> vectors [K, B, dimension, T']; their sum is decoded."""
        books = self.codebooks[st : st + codes.shape[1]]
        return torch.stack(
            [book.embed[level].transpose(1, 2) for book, level in zip(books, codes.unbind(1), strict=True)]
        )


@dataclass
class SpeechTokenizerOutput(ModelOutput):
    """What `forward` returns."""

    audio_values: torch.Tensor | None = None  # [B, T' * hop_length]
    codes: torch.Tensor | None = None  # [B, n_q, T'] int64
    semantic_features: torch.Tensor | None = None  # [B, T', semantic_dimension], the teacher features level 1 predicts


class SpeechTokenizerModel(PreTrainedModel):
    """Neural codec for speech: `encode(values) -> codes`, `decode(codes) -> values`.

    A batch holds inputs of one length: padding would change the codes at the ends.
    """

    config_class = SpeechTokenizerConfig
    main_input_name = "values"
    base_model_prefix = "speech_tokenizer"

    def __init__(self, config: SpeechTokenizerConfig):
        super().__init__(config)
        self.encoder = SpeechTokenizerEncoder(config)
        same = config.dimension == config.semantic_dimension
        self.transform = nn.Identity() if same else nn.Linear(config.dimension, config.semantic_dimension)
        self.quantizer = SpeechTokenizerQuantizer(config)
        self.decoder = SpeechTokenizerDecoder(config)
        self.post_init()

    def _init_weights(self, module: nn.Module):
        if isinstance(module, (WeightNorm, SpeechTokenizerCodebook, nn.Linear, nn.LSTM)):
            module.reset_parameters()

    @torch.no_grad()
    def encode(self, values: torch.Tensor, n_q: int | None = None, st: int = 0) -> torch.Tensor:
        """Audio to codes.

        Args:
            values: [B, T] float, mono in [-1, 1] at `config.sampling_rate`; T >= 1.
            n_q: one past the last level wanted (default: all).
            st: first level; as upstream, its codebook is then applied to the unquantised encoder output, so that
                `encode(x, st=1)` is not `encode(x)[:, 1:]`.

        Returns:
            codes [B, n_q - st, ceil(T / hop_length)], int64 in [0, codebook_size).
        """
        n_q = self.config.num_codebooks if n_q is None else n_q
        self._check_values(values)
        self._check_levels(st, n_q)
        return self.quantizer.encode(self.encoder(values[:, None].to(self.dtype)), n_q, st)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, st: int = 0) -> torch.Tensor:
        """Codes [B, K, T'] of levels st .. st + K - 1 -> audio [B, T' * hop_length], float32."""
        self._check_codes(codes, st)
        return self.decoder(self.quantizer.lookup(codes, st).sum(0)).squeeze(1).float()

    def forward(self, values: torch.Tensor, n_q: int | None = None) -> SpeechTokenizerOutput:
        """Audio [B, T] through the codec, with the features that level 1 was distilled to predict."""
        codes = self.encode(values, n_q)
        vectors = self.quantizer.lookup(codes, 0)
        return SpeechTokenizerOutput(
            audio_values=self.decoder(vectors.sum(0)).squeeze(1).float(),
            codes=codes,
            semantic_features=self.transform(vectors[0].transpose(1, 2)),
        )

    def _check_levels(self, st: int, n_q: int):
        if not 0 <= st < n_q <= self.config.num_codebooks:
            raise ValueError(f"Got levels st={st} to n_q={n_q}, allowed 0 <= st < n_q <= {self.config.num_codebooks}.")

    def _check_values(self, values: torch.Tensor):
        if values.ndim != 2 or not values.numel():
            raise ValueError(f"Got audio of shape {list(values.shape)}, allowed [B, T] with B, T >= 1; mix to mono.")
        if not values.is_floating_point():
            raise ValueError(f"Got {values.dtype} audio, allowed floats in [-1, 1]; divide integers by their maximum.")
        if not values.isfinite().all():
            raise ValueError("Got NaN or infinite audio samples, allowed finite numbers; check how the file was read.")

    def _check_codes(self, codes: torch.Tensor, st: int):
        if codes.ndim != 3 or not codes.numel():
            raise ValueError(f"Got codes of shape {list(codes.shape)}, allowed [B, K, T] with B, K, T >= 1.")
        if codes.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"Got {codes.dtype} codes, allowed int64 or int32.")
        self._check_levels(st, st + codes.shape[1])
        low, high = codes.min().item(), codes.max().item()
        if low < 0 or high >= self.config.codebook_size:
            raise ValueError(f"Got codes from {low} to {high}, allowed 0 to {self.config.codebook_size - 1}.")
