"""SoundStorm: fills the acoustic levels of speech codes in parallel, from the semantic level and a voice prompt.

Borsos et al., "SoundStorm: Efficient Parallel Audio Generation", arXiv 2305.09636; the conformer is that of
arXiv 2005.08100. Tensor names and, by default, the decoding are those of the copy in OpenMOSS/AnyGPT, so that released
checkpoints load (`modeling_anygpt.conversion.soundstorm`) and give the same tokens. This file imports nothing from its
siblings: it can be shipped beside the weights as remote code.

Shapes: B batch, n frames to fill, P frames of prompt, S = P + n, q acoustic levels, C codes per level, D width.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


class SoundStormConfig(PreTrainedConfig):
    """Shape of a SoundStorm. The defaults are the released 351 M parameter model.

    Args:
        num_semantic_codes: size of the semantic level's codebook.
        codebook_size: codes per acoustic level; one more id, `mask_id`, means "not yet known".
        num_quantizers: acoustic levels q.
        hidden_size, num_hidden_layers, num_attention_heads, head_dim: of the conformer.
        ff_mult, conv_expansion_factor, conv_kernel_size: of its blocks.
        paper_decoding: how `generate` works. False: as the copy in AnyGPT's repository does. True: as the paper says
            and as `loss` trains: the levels above the current one stay masked and the prompt stays as given.
        code_dimension: width of the codec's vectors where the model keeps them as `code_vectors`; 0, as released: it
            does not. With them, paper decoding takes the code of least expected squared error instead of the
            likeliest: a weak model, unsure among many codes, then picks a central one instead of noise.
    """

    model_type = "soundstorm"

    num_semantic_codes: int = 1024
    codebook_size: int = 1024
    num_quantizers: int = 7
    hidden_size: int = 1024
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    head_dim: int = 128
    ff_mult: int = 4
    conv_expansion_factor: int = 2
    conv_kernel_size: int = 31
    paper_decoding: bool = False
    code_dimension: int = 0

    @property
    def mask_id(self) -> int:
        return self.codebook_size


class SoundStormFeedForward(nn.Module):
    """Linear, SiLU, Linear on [B, S, D]. Indices 1, 2 and 4 of upstream's `net` (SiLU, dropouts) have no weights."""

    def __init__(self, dim: int, mult: int):
        super().__init__()
        self.net = nn.ModuleDict({"0": nn.Linear(dim, dim * mult), "3": nn.Linear(dim * mult, dim)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net["3"](F.silu(self.net["0"](x)))


class SoundStormAttention(nn.Module):
    """Full self-attention with rotary positions (theta 10000, whole head, half split) on [B, S, D]."""

    def __init__(self, config: SoundStormConfig):
        super().__init__()
        inner = config.num_attention_heads * config.head_dim
        self.head_dim = config.head_dim
        self.to_q = nn.Linear(config.hidden_size, inner, bias=False)
        self.to_kv = nn.Linear(config.hidden_size, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, config.hidden_size)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, rotary: tuple) -> torch.Tensor:
        q, k, v = (self.to_q(x), *self.to_kv(x).chunk(2, -1))
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for t in (q, k, v))  # [B, heads, S, head_dim]
        key_mask = None if mask is None else mask[:, None, None]
        out = F.scaled_dot_product_attention(rotate(q, rotary), rotate(k, rotary), v, attn_mask=key_mask)
        return self.to_out(out.transpose(1, 2).flatten(2))


def rotary_angles(length: int, head_dim: int, device: torch.device) -> torch.Tensor:
    """Angles [length, head_dim] in float32; the two halves of the head share them."""
    inverse = 10000.0 ** (-torch.arange(0, head_dim, 2, device=device).float() / head_dim)
    return torch.outer(torch.arange(length, device=device).float(), inverse).repeat(1, 2)


def rotate(x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotates the pairs (i, i + head_dim / 2) of x [..., S, head_dim] by (cos, sin) of the angles."""
    cos, sin = rotary
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class SoundStormChannelNorm(nn.Module):
    """Norm over the channels of [B, S, C], without bias; upstream clamps the variance instead of adding epsilon."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(x.float(), dim=-1, correction=0, keepdim=True)
        return ((x.float() - mean) * variance.clamp(min=1e-6).rsqrt()).to(x.dtype) * self.gamma[..., 0]


class SoundStormConvolution(nn.Module):
    """The conformer's convolution module on [B, S, D]; padded frames neither give nor get anything."""

    def __init__(self, config: SoundStormConfig):
        super().__init__()
        dim, kernel = config.hidden_size, config.conv_kernel_size
        inner = dim * config.conv_expansion_factor
        self.padding = (0, 0, kernel // 2, (kernel - 1) // 2)
        # The numbers are upstream's positions in a sequence whose other members have no weights.
        self.net1 = nn.ModuleDict({"0": nn.LayerNorm(dim), "2": nn.Conv1d(dim, 2 * inner, 1)})
        self.ds_conv = nn.ModuleDict({"conv": nn.Conv1d(inner, inner, kernel, groups=inner)})
        self.net2 = nn.ModuleDict({"1": SoundStormChannelNorm(inner), "2": nn.Conv1d(inner, dim, 1)})

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        # Upstream's convolutions of width 1 are linear layers; channels stay last, which is several times faster.
        expand, shrink = self.net1["2"], self.net2["2"]
        x = F.glu(F.linear(self.net1["0"](x), expand.weight[..., 0], expand.bias))
        if mask is not None:
            x = x * mask[..., None]
        x = self.ds_conv["conv"](F.pad(x, self.padding).transpose(1, 2)).transpose(1, 2)
        if mask is not None:
            x = x * mask[..., None]
        return F.linear(self.net2["1"](F.silu(x)), shrink.weight[..., 0], shrink.bias)


class SoundStormBlock(nn.Module):
    """x + ff/2, + attention, + convolution, + ff/2, norm. Upstream wraps modules in `fn`, hence the nested names."""

    def __init__(self, config: SoundStormConfig):
        super().__init__()
        dim = config.hidden_size

        def half_step():
            return nn.ModuleDict(
                {"fn": nn.ModuleDict({"fn": SoundStormFeedForward(dim, config.ff_mult), "norm": nn.LayerNorm(dim)})}
            )

        self.ff1 = half_step()
        self.attn = nn.ModuleDict({"fn": SoundStormAttention(config), "norm": nn.LayerNorm(dim)})
        self.conv = SoundStormConvolution(config)
        self.ff2 = half_step()
        self.post_norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, rotary: tuple) -> torch.Tensor:
        x = x + 0.5 * self.ff1["fn"]["fn"](self.ff1["fn"]["norm"](x))
        x = x + self.attn["fn"](self.attn["norm"](x), mask, rotary)
        x = x + self.conv(x, mask)
        x = x + 0.5 * self.ff2["fn"]["fn"](self.ff2["fn"]["norm"](x))
        return self.post_norm(x)


class SoundStormConformer(nn.Module):
    """The blocks: [B, S, D] -> [B, S, D]; mask [B, S] is True at real frames."""

    def __init__(self, config: SoundStormConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.layers = nn.ModuleList(SoundStormBlock(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        angles = rotary_angles(x.shape[1], self.head_dim, x.device)
        rotary = (angles.cos().to(x.dtype), angles.sin().to(x.dtype))
        for layer in self.layers:
            x = layer(x, mask, rotary)
        return x


class SoundStormLevelHeads(nn.Module):
    """One projection D -> C per level: weight [q, D, C], bias [1, 1, q, C]."""

    def __init__(self, config: SoundStormConfig):
        super().__init__()
        q, size = config.num_quantizers, config.codebook_size
        self.weight = nn.Parameter(torch.empty(q, config.hidden_size, size))
        self.bias = nn.Parameter(torch.zeros(1, 1, q, size))


class SoundStormNetwork(nn.Module):
    """Acoustic codes, masked or not, and a condition in; logits of every level out."""

    def __init__(self, config: SoundStormConfig):
        super().__init__()
        self.config = config
        dim, q = config.hidden_size, config.num_quantizers
        self.code_embeds = nn.Embedding(q * (config.codebook_size + 1), dim)
        self.conformer = SoundStormConformer(config)
        self.heads = nn.ModuleDict({"0": nn.Linear(dim, q * dim)})
        self.to_logits = nn.ModuleDict({"0": nn.LayerNorm(dim), "2": SoundStormLevelHeads(config)})

    def forward(self, codes: torch.Tensor, condition: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """codes [B, S, q] in [0, C], condition [B, S, D], mask [B, S] bool -> hidden states [B, S, D]."""
        offsets = torch.arange(codes.shape[-1], device=codes.device) * (self.config.codebook_size + 1)
        return self.conformer(self.code_embeds(codes + offsets).sum(2) + condition, mask)

    def level_states(self, hidden: torch.Tensor, level: int) -> torch.Tensor:
        """hidden [..., D] -> what the level's head reads [..., D] (upstream's `embeds`)."""
        rows, head = slice(level * hidden.shape[-1], (level + 1) * hidden.shape[-1]), self.heads["0"]
        return F.linear(hidden, head.weight[rows], head.bias[rows])

    def logits(self, hidden: torch.Tensor, level: int) -> torch.Tensor:
        """hidden [..., D] -> logits [..., C] of one level."""
        states, out = self.to_logits["0"](self.level_states(hidden, level)), self.to_logits["2"]
        return states @ out.weight[level] + out.bias[0, 0, level]


@dataclass
class SoundStormLoss(ModelOutput):
    """What `loss` returns."""

    loss: torch.Tensor | None = None  # mean cross-entropy of the masked codes, nats
    accuracy: torch.Tensor | None = None  # share of the masked codes whose most likely value is right, no gradient


class SoundStormModel(PreTrainedModel):
    """Semantic codes to all codes: `generate(semantic, prompt) -> codes`; `loss` trains it."""

    config_class = SoundStormConfig
    main_input_name = "semantic"
    base_model_prefix = "soundstorm"
    _supports_sdpa = True

    def __init__(self, config: SoundStormConfig):
        super().__init__(config)
        self.net = SoundStormNetwork(config)
        self.semantic_token_emb = nn.Embedding(config.num_semantic_codes, config.hidden_size)
        if config.code_dimension:
            shape = (config.num_quantizers, config.codebook_size, config.code_dimension)
            self.register_buffer("code_vectors", torch.zeros(shape))
        self.post_init()

    def _init_weights(self, module: nn.Module):
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.LayerNorm)):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.hidden_size**-0.5)
        elif isinstance(module, SoundStormLevelHeads):
            nn.init.normal_(module.weight, std=self.config.hidden_size**-0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, SoundStormChannelNorm):
            nn.init.ones_(module.gamma)

    def forward(
        self, semantic: torch.Tensor, acoustic: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One pass of the network.

        Args:
            semantic: [B, S] codes of the semantic level.
            acoustic: [B, S, q] codes, `config.mask_id` where unknown.
            attention_mask: [B, S] bool, True at real frames; None: all are.

        Returns:
            logits [B, S, q, C].
        """
        hidden = self.net(acoustic, self.semantic_token_emb(semantic), attention_mask)
        return torch.stack([self.net.logits(hidden, level) for level in range(self.config.num_quantizers)], 2)

    def loss(
        self,
        codes: torch.Tensor,
        prompt_length: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        levels: torch.Tensor | None = None,
        mask_ratio: torch.Tensor | None = None,
        upper_weight: float = 0.0,
        soft_labels: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SoundStormLoss:
        """The paper's objective: for each row draw a level; mask a random share of the target's codes of that level
        and all of its levels above; predict the masked codes of that level. The prompt in front is never masked.

        Args:
            codes: [B, S, 1 + q], the semantic level first; each row is its prompt, its target, then padding.
            prompt_length: [B] frames of prompt, may be 0.
            attention_mask: [B, S] bool, True at real frames; None: all are.
            levels: [B] acoustic level of each row, 0 .. q - 1; drawn evenly if None.
            mask_ratio: [B] share to mask; cos(u) with u even in [0, pi / 2] if None.
            upper_weight: weight of the codes of the levels above, which the paper leaves out of the loss. They are
                masked anyway, so that they cost only their heads: more signal per pass for small budgets.
            soft_labels: [q, C, C], the distribution over codes to learn in the place of each code; None: the code.
            generator: of the draws, on the model's device.
        """
        batch, length, width = codes.shape
        if width != 1 + self.config.num_quantizers:
            raise ValueError(f"Got {width} levels of codes, allowed {1 + self.config.num_quantizers}, semantic first.")

        def draw(*shape):
            return torch.rand(*shape, generator=generator, device=codes.device)

        if levels is None:
            levels = (draw(batch) * self.config.num_quantizers).long()
        if mask_ratio is None:
            mask_ratio = torch.cos(draw(batch) * math.pi / 2)
        target = torch.arange(length, device=codes.device) >= prompt_length[:, None]  # [B, S]
        if attention_mask is not None:
            target = target & attention_mask
        wanted = target & (draw(batch, length) < mask_ratio[:, None])
        semantic, acoustic = codes[..., 0], codes[..., 1:]
        order = torch.arange(self.config.num_quantizers, device=codes.device) - levels[:, None]  # [B, q]
        hide = (order == 0)[:, None] & wanted[..., None] | (order > 0)[:, None] & target[..., None]
        hidden = self.net(
            acoustic.masked_fill(hide, self.config.mask_id), self.semantic_token_emb(semantic), attention_mask
        )
        loss, right, weights = hidden.sum() * 0, hidden.new_zeros(()), hidden.new_zeros(())
        for level in range(self.config.num_quantizers):  # the heads see only the frames that count
            current = wanted & (levels == level)[:, None]
            weight = current + upper_weight * (target & (levels < level)[:, None])  # [B, S]
            frames = weight > 0
            if frames.any():
                logits, labels = self.net.logits(hidden[frames], level), acoustic[..., level][frames]
                wanted_codes = labels if soft_labels is None else soft_labels[level][labels]
                loss = loss + weight[frames] @ F.cross_entropy(logits.float(), wanted_codes, reduction="none")
                right = right + ((logits.argmax(-1) == labels) & current[frames]).sum()
                weights = weights + weight.sum()
        return SoundStormLoss(loss=loss / weights.clamp(min=1), accuracy=right / wanted.sum().clamp(min=1))

    @torch.no_grad()
    def generate(
        self,
        semantic: torch.Tensor,
        prompt: torch.Tensor | None = None,
        steps: int = 1,
        greedy: bool = True,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Fills the acoustic levels.

        Args:
            semantic: [B, n] codes of the semantic level.
            prompt: [B, P, 1 + q] codes of the voice to speak in, the semantic level first; or None.
            steps: refinements of the first acoustic level; each of the others takes one pass of the network.
            greedy: take the best code where the schedule allows it; else sample from the top 30 %.
            generator: of the draws, on the model's device. Greedy with steps=1 does not depend on it.

        Returns:
            codes [B, n, 1 + q], the given semantic level first.
        """
        self._check_inputs(semantic, prompt, steps)
        batch, frames = semantic.shape
        acoustic = semantic.new_full((batch, frames, self.config.num_quantizers), self.config.mask_id)
        condition = semantic
        if prompt is not None:
            condition = torch.cat((prompt[..., 0], semantic), 1)
            acoustic = torch.cat((prompt[..., 1:], acoustic), 1)
        fill = self._fill_as_paper if self.config.paper_decoding else self._fill_as_upstream
        acoustic = fill(acoustic, self.semantic_token_emb(condition), frames, steps, greedy, generator)
        return torch.cat((semantic[..., None], acoustic[:, -frames:]), -1)

    def _fill_as_paper(self, codes, condition, frames, steps, greedy, generator):
        """Level by level, `steps` passes for the first, one for the others, keeping the surest codes of each."""
        prompt = codes.shape[1] - frames
        for level in range(self.config.num_quantizers):
            passes = steps if level == 0 else 1
            for i in range(1, passes + 1):
                logits = self.net.logits(self.net(codes, condition, None)[:, prompt:], level)  # [B, n, C]
                if greedy:
                    sampled = self._best(logits, level)
                else:
                    sampled = sample(keep_likeliest(logits), (passes - i + 1) / passes, generator)
                known = codes[:, prompt:, level]
                unknown = known == self.config.mask_id
                sampled = torch.where(unknown, sampled, known)
                remask = math.floor(math.cos(math.pi / 2 * i / passes) * frames)
                if remask:
                    sure = logits.softmax(-1).gather(-1, sampled[..., None]).squeeze(-1).masked_fill(~unknown, 2.0)
                    sampled = sampled.scatter(1, sure.topk(remask, largest=False).indices, self.config.mask_id)
                codes[:, prompt:, level] = sampled
        return codes

    def _best(self, logits: torch.Tensor, level: int) -> torch.Tensor:
        """logits [B, n, C] -> codes [B, n]: of least expected squared error if vectors are known, else likeliest."""
        if not self.config.code_dimension:
            return logits.argmax(-1)
        vectors = self.code_vectors[level]
        return (2 * (logits.softmax(-1) @ vectors) @ vectors.T - vectors.square().sum(-1)).argmax(-1)

    def _fill_as_upstream(self, codes, condition, frames, steps, greedy, generator):
        """AnyGPT's copy, its quirks included: steps + 1 passes over the first level, with a temperature that rises;
        codes to mask again are ranked over all levels and the prompt,
        by their share of the likeliest 30 %; the passes over the other levels write all levels
        above too, also the prompt's."""

        def all_logits():
            hidden = self.net(codes, condition, None)
            return torch.stack([self.net.logits(hidden, level) for level in range(self.config.num_quantizers)], 2)

        mask_id = self.config.mask_id
        is_prompt = torch.arange(codes.shape[1], device=codes.device)[:, None] < codes.shape[1] - frames  # [S, 1]
        for i in range(steps + 1):
            remask = math.floor(math.cos(math.pi / 2 * i / steps) * codes.shape[1])
            logits = all_logits()  # [B, S, q, C]
            if greedy and remask == 0:
                sampled = logits.argmax(-1)
            else:
                logits = keep_likeliest(logits)
                sampled = sample(logits, i / steps, generator)
            codes = torch.where(codes == mask_id, sampled, codes)
            if remask:
                doubt = 1 - logits.softmax(-1).gather(-1, sampled[..., None]).squeeze(-1)  # [B, S, q]
                rank = doubt.flatten(1).argsort(descending=True).argsort().view_as(doubt)
                again = rank < remask
                again[..., 1:] = True
                codes = codes.masked_fill(again & ~is_prompt, mask_id)
        for level in range(1, self.config.num_quantizers):
            logits = all_logits()
            # Upstream samples these at temperature 0: the draws only advance the random stream.
            sampled = logits.argmax(-1) if greedy else sample(keep_likeliest(logits), 0.0, generator)
            codes = torch.cat((codes[..., :level], sampled[..., level:]), -1)
        return codes

    def _check_inputs(self, semantic: torch.Tensor, prompt: torch.Tensor | None, steps: int):
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"Got steps={steps!r}, allowed whole numbers, 1 or more.")
        if semantic.ndim != 2 or not semantic.numel():
            raise ValueError(f"Got semantic codes of shape {list(semantic.shape)}, allowed [B, n] with B, n >= 1.")
        self._check_codes("semantic", semantic, self.config.num_semantic_codes)
        if prompt is None:
            return
        wanted = (semantic.shape[0], 1 + self.config.num_quantizers)
        if prompt.ndim != 3 or (prompt.shape[0], prompt.shape[2]) != wanted:
            raise ValueError(
                f"Got a prompt of shape {list(prompt.shape)}, allowed [{wanted[0]}, P, {wanted[1]}]: one per row of "
                f"the semantic codes, the semantic level first."
            )
        if prompt.shape[1]:
            self._check_codes("semantic prompt", prompt[..., 0], self.config.num_semantic_codes)
            self._check_codes("acoustic prompt", prompt[..., 1:], self.config.codebook_size)

    @staticmethod
    def _check_codes(name: str, codes: torch.Tensor, size: int):
        if codes.dtype != torch.int64:
            raise ValueError(f"Got {name} codes of {codes.dtype}, allowed int64.")
        low, high = codes.min().item(), codes.max().item()
        if low < 0 or high >= size:
            raise ValueError(f"Got {name} codes from {low} to {high}, allowed 0 to {size - 1}.")


def keep_likeliest(logits: torch.Tensor) -> torch.Tensor:
    """logits [..., C] with all but the highest 30 % set to minus infinity."""
    threshold = logits.topk(math.ceil(0.3 * logits.shape[-1]), -1).values[..., -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def sample(logits: torch.Tensor, temperature: float, generator: torch.Generator | None) -> torch.Tensor:
    """Draws from logits [..., C] by Gumbel noise; temperature 0 gives the likeliest."""
    uniform = torch.empty_like(logits).uniform_(0, 1, generator=generator)
    noise = -torch.log(-torch.log(uniform + 1e-20) + 1e-20)  # upstream's epsilons, where uniform or its logarithm is 0
    return (logits / max(temperature, 1e-10) + noise).argmax(-1)
