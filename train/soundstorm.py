"""Train the SoundStorm of anygpt-tiny: the acoustic levels of speech codes from the semantic level and a voice prompt.

    python train/make_speech_data.py --out data/speech
    python train/soundstorm.py --data data/speech --codec speech_codec --out soundstorm --steps 3000 --device cpu

Reads DATA/codes_train.npz and codes_heldout.npz (`codes` uint16 [levels, all frames], `offsets`, `voice`). A row is a
piece of one utterance as the prompt and a piece of another of the same voice as the target; the loss is the paper's
(`SoundStormModel.loss`), mostly with whole levels masked, as in generation with one step. Stops after --steps, or
after --minutes if that is sooner; with --resume it goes on from OUT/training.safetensors, giving the losses that an
uninterrupted run gives. OUT becomes a `from_pretrained` folder with float16 weights on disk.
"""

import copy
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import HfArgumentParser

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout too

from modeling_anygpt.codecs.soundstorm import SoundStormConfig, SoundStormModel  # noqa: E402
from modeling_anygpt.codecs.speech_tokenizer import SpeechTokenizerModel  # noqa: E402


@dataclass
class Arguments:
    data: Path = field(metadata={"help": "folder of codes_train.npz and codes_heldout.npz"})
    codec: Path = field(metadata={"help": "folder of the SpeechTokenizer that made the codes"})
    out: Path = field(metadata={"help": "folder to write"})
    steps: int = field(default=3000, metadata={"help": "optimizer steps; the rate falls over the last 30 %"})
    minutes: float = field(default=1e9, metadata={"help": "stop after this time, leaving a checkpoint"})
    device: str = "cpu"
    threads: int = field(default=1, metadata={"help": "CPU threads"})
    resume: bool = False
    seed: int = 0
    batch: int = field(default=8, metadata={"help": "rows"})
    frames: int = field(default=176, metadata={"help": "prompt and target of a row together, 50 Hz"})
    whole: float = field(default=0.75, metadata={"help": "share of rows whose whole level is masked"})
    rate: float = field(default=2e-3, metadata={"help": "peak learning rate"})
    dim: int = 128
    depth: int = 3
    heads: int = 4
    ff_mult: int = 2
    perplexity: float = field(default=16.0, metadata={"help": "codes that share a label, see `neighbours`"})
    kernel: int = field(default=9, metadata={"help": "width of the depthwise convolutions, frames"})
    upper_weight: float = field(
        default=0.3, metadata={"help": "weight of the levels above the current one in the loss"}
    )
    log: int = field(default=50, metadata={"help": "steps between lines"})
    evaluate: int = field(default=500, metadata={"help": "steps between held-out evaluations and checkpoints"})


class Utterances:
    """The codes of one npz file, by voice."""

    def __init__(self, path: Path):
        data = np.load(path)
        self.codes = torch.from_numpy(data["codes"].astype(np.int64)).T.contiguous()  # [all frames, levels]
        starts = data["offsets"]
        self.spans = list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))
        voices = data["voice"].tolist()
        self.same_voice = {voice: [i for i, other in enumerate(voices) if other == voice] for voice in set(voices)}
        self.voices = voices

    def row(self, frames: int, generator: torch.Generator) -> tuple[torch.Tensor, int]:
        """A random prompt and target -> codes [<= frames, levels], frames of prompt (0, or 0.5 to 2.5 s)."""

        def draw(high: int) -> int:
            return int(torch.randint(high, (), generator=generator))

        def piece(index: int, length: int) -> torch.Tensor:
            start, end = self.spans[index]
            start += draw(max(1, end - start - length + 1))
            return self.codes[start : min(end, start + length)]

        target = draw(len(self.spans))
        mates = [i for i in self.same_voice[self.voices[target]] if i != target]
        prompt = self.codes[:0]
        if mates and draw(10):
            prompt = piece(mates[draw(len(mates))], 25 + draw(101))
        return torch.cat((prompt, piece(target, frames - len(prompt)))), len(prompt)

    def batch(self, rows: int, frames: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Arguments of `SoundStormModel.loss`: codes [B, S, levels], prompt_length [B], attention_mask [B, S]."""
        drawn = [self.row(frames, generator) for _ in range(rows)]
        lengths = torch.tensor([len(codes) for codes, _ in drawn])
        codes = torch.nn.utils.rnn.pad_sequence([codes for codes, _ in drawn], batch_first=True)
        mask = torch.arange(codes.shape[1]) < lengths[:, None]
        return {"codes": codes, "prompt_length": torch.tensor([n for _, n in drawn]), "attention_mask": mask}


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


def to(batch: dict, device: str) -> dict:
    return {name: value.to(device) for name, value in batch.items()}


@torch.no_grad()
def evaluate(model: SoundStormModel, utterances: Utterances, args: Arguments) -> str:
    """Accuracy per level on held-out rows, the whole level masked and those below given."""
    generator = torch.Generator().manual_seed(1)
    batch = to(utterances.batch(24, args.frames, generator), args.device)
    model.eval()
    ones, count = torch.ones(24, device=args.device), model.config.num_quantizers
    results = [model.loss(**batch, levels=(ones * i).long(), mask_ratio=ones) for i in range(count)]
    model.train()
    accuracies = " ".join(f"{result.accuracy:.3f}" for result in results)
    return f"held-out loss {sum(float(result.loss) for result in results) / count:.3f} accuracy {accuracies}"


def save_training(path: Path, model, optimizer, generator, step: int):
    """Everything --resume needs, in one safetensors file."""
    tensors = {"generator": generator.get_state()}
    for name, parameter in model.named_parameters():
        tensors["model." + name] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    save_file(tensors, path.with_suffix(".tmp"), metadata={"step": json.dumps(step)})
    os.replace(path.with_suffix(".tmp"), path)


def load_training(path: Path, model, optimizer, generator, device: str) -> int:
    """Restores what `save_training` wrote -> the number of steps done."""
    with safe_open(path, "pt") as file:
        generator.set_state(file.get_tensor("generator"))
        for name, parameter in model.named_parameters():
            parameter.data.copy_(file.get_tensor("model." + name))
            state = {key: file.get_tensor(f"{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {key: value.to(device) for key, value in state.items()}
        return json.loads(file.metadata()["step"])


def save_model(model: SoundStormModel, folder: Path):
    """float16 on disk; the configuration says float32, which `from_pretrained` then loads."""
    half = copy.deepcopy(model).half()
    half.save_pretrained(folder / "tmp")
    half.config.dtype = "float32"
    half.config.save_pretrained(folder / "tmp")
    for path in (folder / "tmp").iterdir():
        os.replace(path, folder / path.name)
    (folder / "tmp").rmdir()


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train, held_out = (Utterances(args.data / f"codes_{name}.npz") for name in ("train", "heldout"))
    codec = SpeechTokenizerModel.from_pretrained(args.codec)
    config = SoundStormConfig(
        num_quantizers=train.codes.shape[1] - 1,
        hidden_size=args.dim,
        num_hidden_layers=args.depth,
        num_attention_heads=args.heads,
        head_dim=args.dim // args.heads,
        ff_mult=args.ff_mult,
        conv_kernel_size=args.kernel,
        paper_decoding=True,
        code_dimension=codec.config.dimension,
    )
    model = SoundStormModel(config)
    start_from_codec(model, codec, train.codes)
    soft_labels = neighbours(codec, args.perplexity).to(args.device)
    model.to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), args.rate, (0.9, 0.98), weight_decay=0.02, fused=True)
    generator = torch.Generator().manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    state, done = args.out / "training.safetensors", 0
    if args.resume:
        done = load_training(state, model, optimizer, generator, args.device)
    print(f"{model.num_parameters() / 1e6:.2f} M parameters, {len(train.codes) / 180000:.2f} h of speech", flush=True)
    start, losses = time.monotonic(), []
    for step in range(done + 1, args.steps + 1):
        share = step / args.steps
        rate = args.rate * min(1, step / 50) * min(1, max(0.02, (1 - share) / 0.3))
        optimizer.param_groups[0]["lr"] = rate
        batch = train.batch(args.batch, args.frames, generator)
        ratio = torch.cos(torch.rand(args.batch, generator=generator) * torch.pi / 2)
        ratio[torch.rand(args.batch, generator=generator) < args.whole] = 1.0
        batch["mask_ratio"] = ratio
        batch["levels"] = torch.randint(config.num_quantizers, (args.batch,), generator=generator)
        # The draws inside `loss` (which codes are masked) repeat after --resume because their seed is the step.
        inner = torch.Generator(args.device).manual_seed(step)
        batch = to(batch, args.device)
        result = model.loss(**batch, upper_weight=args.upper_weight, soft_labels=soft_labels, generator=inner)
        optimizer.zero_grad()
        result.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(result.loss.item())
        stop = step == args.steps or time.monotonic() - start > 60 * args.minutes
        if step % args.log == 0 or stop:
            speed = (step - done) / (time.monotonic() - start)
            print(f"step {step} loss {np.mean(losses):.4f} rate {rate:.1e} {speed:.2f} steps/s", flush=True)
            losses = []
        if step % args.evaluate == 0 or stop:
            print(f"step {step} {evaluate(model, held_out, args)}", flush=True)
            save_training(state, model, optimizer, generator, step)
        if stop:
            break
    save_model(model.eval(), args.out)


if __name__ == "__main__":
    main()
