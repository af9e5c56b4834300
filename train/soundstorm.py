"""Train a SoundStorm: the acoustic levels of speech codes from the semantic level and a voice prompt.

  python train/make_speech_data.py --out data/speech
  python train/soundstorm.py train/configs/soundstorm.yaml --data data/speech --codec speech_codec --out out/soundstorm
  accelerate launch train/soundstorm.py out/soundstorm_training/settings.yaml --resume

Reads DATA/codes_train.npz and codes_heldout.npz (`codes` uint16 [levels, all frames], `offsets`, `voice`). A row is a
piece of one utterance as the prompt and a piece of another of the same voice as the target; the loss is the paper's
(`SoundStormModel.loss`), mostly with whole levels masked, as in generation with one step.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from codec_files import export, load_codec, read_arrays
from codec_samples import write_sounds
from codec_training import Checked, Run, RunSettings
from settings import parse, run_script

from modeling_anygpt.codecs import SoundStormConfig, SoundStormModel, SpeechTokenizerModel
from processing_anygpt.codec_shelf import load_whole

PROMPT = (25, 125)  # frames, at least and at most


@dataclass
class Recipe(Checked):
    data: Path = field(metadata={"help": "folder of codes_train.npz and codes_heldout.npz"})
    codec: str = field(metadata={"help": "folder or Hub id of the SpeechTokenizer that made the codes"})
    steps: int = field(metadata={"help": "the rate falls over the last 30 %%"})
    batch: int = field(metadata={"help": "rows, of each process"})
    frames: int = field(metadata={"help": "prompt and target of a row together, 50 Hz"})
    whole: float = field(metadata={"help": "share of rows whose whole level is masked"})
    learning_rate: float
    perplexity: float = field(metadata={"help": "codes that share a label, see `neighbours`"})
    upper_weight: float = field(metadata={"help": "weight in the loss of the levels above the current one"})
    start: str | None = field(default=None, metadata={"help": "folder of a SoundStorm of these sizes to go on from"})

    def __post_init__(self):
        super().__post_init__()
        if self.frames <= PROMPT[1]:
            raise ValueError(
                f"frames: got {self.frames}, allowed: {PROMPT[1] + 1} or more; a prompt takes {PROMPT[1]}."
            )


@dataclass
class Sizes(Checked):
    """Of SoundStormConfig."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    ff_mult: int
    conv_kernel_size: int

    def __post_init__(self):
        super().__post_init__()
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size: got {self.hidden_size}, allowed with num_attention_heads {self.num_attention_heads}: "
                f"multiples of {2 * self.num_attention_heads}."
            )


class Utterances:
    """The codes of one npz file, by voice."""

    def __init__(self, path: Path):
        codes, starts, voices = read_arrays(path, "codes", "offsets", "voice")
        starts, shapes = starts.astype(np.int64), [list(array.shape) for array in (codes, starts, voices)]
        fit = codes.ndim == 2 and starts.ndim == voices.ndim == 1 and len(starts) - 1 == len(voices) > 0
        if not fit or starts[0] != 0 or starts[-1] != codes.shape[1] or np.diff(starts).min() < 1:
            raise ValueError(
                f"{path} has codes {shapes[0]}, offsets {shapes[1]} and voice {shapes[2]}, allowed: [levels, frames], "
                "[N + 1] that rise from 0 to all frames, and [N]. Make it again with train/make_speech_data.py."
            )
        self.codes = torch.from_numpy(codes.astype(np.int64)).T.contiguous()  # [all frames, levels]
        self.spans = list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))
        self.voices = voices.tolist()
        self.same_voice: dict[str, list[int]] = {}
        for i, voice in enumerate(self.voices):
            self.same_voice.setdefault(voice, []).append(i)

    def piece(self, index: int, length: int) -> torch.Tensor:
        """At most `length` frames from a random place of one utterance: [frames, levels]."""
        start, end = self.spans[index]
        start += draw(max(1, end - start - length + 1))
        return self.codes[start : min(end, start + length)]

    def row(self, frames: int) -> tuple[torch.Tensor, int]:
        """A random prompt and target -> codes [<= frames, levels], frames of prompt (0, or 0.5 to 2.5 s)."""
        target = draw(len(self.spans))
        mates = [i for i in self.same_voice[self.voices[target]] if i != target]
        prompt = self.codes[:0]
        if mates and draw(10):
            prompt = self.piece(mates[draw(len(mates))], PROMPT[0] + draw(PROMPT[1] - PROMPT[0] + 1))
        return torch.cat((prompt, self.piece(target, frames - len(prompt)))), len(prompt)

    def batch(self, rows: int, frames: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Arguments of `SoundStormModel.loss`: codes [B, S, levels], prompt_length [B], attention_mask [B, S]."""
        drawn = [self.row(frames) for _ in range(rows)]
        lengths = torch.tensor([len(codes) for codes, _ in drawn])
        codes = torch.nn.utils.rnn.pad_sequence([codes for codes, _ in drawn], batch_first=True)
        mask = torch.arange(codes.shape[1]) < lengths[:, None]
        batch = {"codes": codes, "prompt_length": torch.tensor([n for _, n in drawn]), "attention_mask": mask}
        return {name: tensor.to(device) for name, tensor in batch.items()}


def draw(high: int) -> int:
    return int(torch.randint(high, ()))


def codec_of(source: str, *parts: torch.Tensor) -> SpeechTokenizerModel:
    """The codec of codes [frames, levels]."""
    codec = load_codec(SpeechTokenizerModel, source)
    levels, size = codec.config.num_codebooks, codec.config.codebook_size
    for codes in parts:
        if levels != codes.shape[1] or not 0 <= int(codes.min()) <= int(codes.max()) < size:
            raise ValueError(
                f"Got codes of {codes.shape[1]} levels, {int(codes.min())} to {int(codes.max())}; {source} has "
                f"{levels} levels, 0 to {size - 1}. Give the codec that made the codes."
            )
    return codec


@torch.no_grad()
def start_from_codec(model: SoundStormModel, codec: SpeechTokenizerModel, codes: torch.Tensor):
    """Embeddings and heads start as one random projection of the codec's vectors: codes that sound alike start alike,
    so that what is learnt of a frequent code serves its rare neighbours. Biases start as log frequencies in the codes
    [frames, levels]."""
    books = torch.stack([book.embed for book in codec.quantizer.codebooks])  # [levels, codes, dimension]
    model.code_vectors.copy_(books[1:])
    vectors = books @ torch.randn(codec.config.dimension, model.config.hidden_size)  # [levels, codes, D]
    vectors -= vectors.mean(1, keepdim=True)
    vectors /= vectors.std((1, 2), keepdim=True) * model.config.hidden_size**0.5
    model.semantic_token_emb.weight.copy_(vectors[0])
    embeds = model.net.code_embeds.weight.unflatten(0, (model.config.num_quantizers, -1))  # [q, codes + 1, D]
    embeds[:, :-1] = vectors[1:]
    heads = model.net.to_logits["2"]
    heads.weight.copy_(0.3 * vectors[1:].mT)
    for level, column in enumerate(codes[:, 1:].T):
        counts = torch.bincount(column, minlength=model.config.codebook_size) + 1.0
        heads.bias[0, 0, level] = (counts / counts.sum()).log()


def go_on_from(folder: str, config: SoundStormConfig) -> SoundStormModel:
    """The model in `folder`, whose sizes must be those of `config`."""
    found = SoundStormConfig.from_pretrained(folder)
    for name in (*Sizes.__annotations__, "num_quantizers", "codebook_size"):
        if getattr(found, name) != getattr(config, name):
            raise ValueError(
                f"{folder} has {name} {getattr(found, name)}, the recipe and its codes have {getattr(config, name)}. "
                "Make them equal, or leave `start` out."
            )
    return load_whole(SoundStormModel, folder, dtype=torch.float32)


def neighbours(codec: SpeechTokenizerModel, perplexity: float) -> torch.Tensor:
    """Labels [acoustic levels, C, C] that share each code's probability with those whose vectors are near it, about
    `perplexity` of them. The upper levels are nearly noise: what can be learnt, and heard, is the neighbourhood."""
    labels = []
    for book in codec.quantizer.codebooks[1:]:
        distances = torch.cdist(book.embed, book.embed).square()
        low, high = 0.0, distances.max().item()
        for _ in range(20):  # the width of the neighbourhoods, by bisection
            middle = (low + high) / 2
            soft = torch.softmax(-distances / middle, -1)
            entropy = torch.special.entr(soft).sum(-1).mean()
            low, high = (middle, high) if entropy.exp() < perplexity else (low, middle)
        labels.append(soft)
    return torch.stack(labels)


@torch.no_grad()
def validate(stem: Path, model: SoundStormModel, codec: SpeechTokenizerModel, heldout: Utterances, frames: int):
    """Loss, and accuracy of each level if it is wholly masked and those below are given; three utterances, a third of
    each as the prompt, as the codec decodes their own codes and those made here."""
    torch.manual_seed(1)  # the same rows every time; the next step has its own seed
    count, ones = model.config.num_quantizers, torch.ones(24, device=model.device)
    batch = heldout.batch(len(ones), frames, model.device)
    model.eval()
    results = [model.loss(**batch, levels=(ones * i).long(), mask_ratio=ones) for i in range(count)]
    spans = [heldout.spans[i] for i in np.linspace(0, len(heldout.spans) - 1, 3).astype(int)]
    length = min(min(end - start for start, end in spans), frames)
    codes = torch.stack([heldout.codes[start : start + length] for start, _ in spans]).to(model.device)
    prompt, real = codes[:, : length // 3], codes[:, length // 3 :]
    made = model.generate(real[..., 0], prompt)
    model.train()
    waves = [codec.decode(version.transpose(1, 2)).cpu().numpy() for version in (real, made)]
    write_sounds(stem, waves, codec.config.sampling_rate)
    accuracies = {f"accuracy {i + 1}": float(result.accuracy) for i, result in enumerate(results)}
    return {"loss": sum(float(result.loss) for result in results) / count} | accuracies


def main(argv: list[str]) -> None:
    recipe, sizes, settings = parse((Recipe, Sizes, RunSettings), argv, __doc__)
    run = Run(settings, recipe, sizes)
    train, heldout = (Utterances(recipe.data / f"codes_{name}.npz") for name in ("train", "heldout"))
    codec = codec_of(recipe.codec, train.codes, heldout.codes)
    config = SoundStormConfig(
        **asdict(sizes),
        head_dim=sizes.hidden_size // sizes.num_attention_heads,
        num_quantizers=train.codes.shape[1] - 1,
        codebook_size=codec.config.codebook_size,
        num_semantic_codes=codec.config.codebook_size,
        paper_decoding=True,
        code_dimension=codec.config.dimension,
    )
    if recipe.start:
        model = go_on_from(recipe.start, config)
    else:
        model = SoundStormModel(config)
        start_from_codec(model, codec, train.codes)
    soft_labels = neighbours(codec, recipe.perplexity).to(run.device)
    model.to(run.device).train()
    codec.to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, (0.9, 0.98), weight_decay=0.02, fused=True)
    run.say(f"{model.num_parameters() / 1e6:.2f} M parameters, {len(train.codes) / 180000:.2f} h of speech")

    for step in run.steps(
        recipe.steps,
        {"model": model, "optimizer": optimizer},
        validate=lambda stem: validate(stem, model, codec, heldout, recipe.frames),
    ):
        falling = min(1, max(0.02, (1 - (step + 1) / recipe.steps) / 0.3))
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * min(1, (step + 1) / 50) * falling
        batch = train.batch(recipe.batch, recipe.frames, run.device)
        ratio = torch.cos(torch.rand(recipe.batch, device=run.device) * torch.pi / 2)
        ratio[torch.rand(recipe.batch, device=run.device) < recipe.whole] = 1.0
        levels = torch.randint(config.num_quantizers, (recipe.batch,), device=run.device)
        with run.autocast():
            result = model.loss(
                **batch, levels=levels, mask_ratio=ratio, upper_weight=recipe.upper_weight, soft_labels=soft_labels
            )
        run.learn(result.loss, optimizer, clip=1.0)
        run.note(loss=result.loss)
    if run.is_main:
        export(model.eval(), settings.out)


if __name__ == "__main__":
    run_script(main)
