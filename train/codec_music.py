"""Train the music codec of anygpt-tiny (modeling_anygpt/codecs/spectral.py).

    python train/make_music_data.py --sound-font TimGM6mb.sf2 --clips 2400 --out data/music
    python train/codec_music.py --data data/music --out music_codec --minutes 15 --device cpu

A plain regression of log magnitudes. The first steps run without the quantiser; then the codebooks start from data,
follow moving averages of what they code, and codes that nothing uses any more are moved onto current data. Stops
after --minutes or --steps, whichever is first; with --resume it goes on from OUT/training.safetensors towards the same
or a larger number. OUT becomes a `from_pretrained` folder with float16 weights on disk.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout too

from modeling_anygpt.codecs.spectral import SpectralCodecConfig, SpectralCodecModel  # noqa: E402


class CodebookAverages:
    """Moving averages of the vectors that each code stands for: they are the codebooks' training."""

    def __init__(self, quantizer, decay: float = 0.98):
        self.books = quantizer.codebooks.data  # [K, codes, D]
        self.decay = decay
        self.sums = torch.zeros_like(self.books)
        self.counts = torch.zeros(self.books.shape[:2], device=self.books.device)

    def start(self, z: torch.Tensor) -> None:
        """Codebooks from data: z [N, D], N >= codes."""
        for book, sums, counts in zip(self.books, self.sums, self.counts):
            book.copy_(z[torch.randperm(len(z), device=z.device)[: len(book)]])
            for _ in range(5):  # a few rounds of k-means
                code = (2 * z @ book.T - book.square().sum(-1)).argmax(-1)
                sums.zero_().index_add_(0, code, z)
                counts.zero_().index_add_(0, code, torch.ones_like(z[:, 0]))
                book.copy_(torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), book))
            counts.clamp_(min=0.5)
            sums.copy_(book * counts[:, None])
            z = z - book[(2 * z @ book.T - book.square().sum(-1)).argmax(-1)]

    def update(self, z: torch.Tensor, codes: torch.Tensor) -> None:
        """z [N, D] before quantisation, codes [N, K] it got."""
        for book, sums, counts, code in zip(self.books, self.sums, self.counts, codes.T):
            taken = book[code]
            counts.lerp_(torch.zeros_like(counts).index_add_(0, code, torch.ones_like(z[:, 0])), 1 - self.decay)
            sums.lerp_(torch.zeros_like(sums).index_add_(0, code, z), 1 - self.decay)
            usual = len(z) / len(book)
            dead = counts < 0.02 * usual
            sums[dead] = z[torch.randint(len(z), (int(dead.sum()),), device=z.device)] * 0.2 * usual
            counts[dead] = 0.2 * usual
            book.copy_(sums / counts[:, None])
            z = z - taken


def loss_of(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 of log magnitudes [B, N, F]; loud bins count up to 8 times as much as silent ones, which are 9 of 10."""
    return ((predicted - target).abs() * (1 + target + 6.9)).mean()


def save(model: SpectralCodecModel, folder: Path) -> None:
    """float16 on disk; the config says float32, so `from_pretrained` widens the weights."""
    state = {name: tensor.detach().cpu().half() for name, tensor in model.state_dict().items()}
    model.config.dtype = torch.float32
    model.save_pretrained(folder, state_dict=state)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["dtype"] = "float32"
    path.with_suffix(".tmp").write_text(json.dumps(config, indent=2) + "\n")
    os.replace(path.with_suffix(".tmp"), path)


def training_state(model, optimizer, averages) -> dict[str, torch.Tensor]:
    """Everything that training changes, by name; the tensors themselves, so that filling them resumes."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {"averages.sums": averages.sums, "averages.counts": averages.counts}
    for i, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        for name, tensor in optimizer.state[parameter].items():
            state[f"optimizer.{i}.{name}"] = tensor
    return state


def checkpoint(path: Path, state: dict[str, torch.Tensor], step: int, seconds: float) -> None:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    state["progress"] = torch.tensor([step, seconds], dtype=torch.float64)
    save_file(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of clips_*.npy")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--steps", type=int, default=10**6)
    parser.add_argument("--warm-steps", type=int, default=150, help="steps without quantiser")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--frames", type=int, default=32, help="code frames (40 ms) in a crop")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    files = sorted(args.data.glob("clips_*.npy"))
    if not files:
        raise ValueError(f"No clips_*.npy in {args.data}: make them with train/make_music_data.py.")
    clips = torch.from_numpy(np.concatenate([np.load(file) for file in files])).to(args.device)  # int16 [N, 80000]
    model = SpectralCodecModel(SpectralCodecConfig()).to(args.device).train()
    averages = CodebookAverages(model.quantizer)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, args.learning_rate, betas=(0.9, 0.98), weight_decay=1e-3)
    args.out.mkdir(parents=True, exist_ok=True)
    resume = args.out / "training.safetensors"
    step, before = 0, 0.0
    if args.resume:
        saved = load_file(resume, device=args.device)
        step, before = int(saved["progress"][0]), float(saved["progress"][1])
        for parameter in trained:  # the state that AdamW makes at its first step
            optimizer.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        with torch.no_grad():
            for name, tensor in training_state(model, optimizer, averages).items():
                tensor.copy_(saved[name])

    length = args.frames * model.config.samples_per_frame
    began, saved_at, recent = time.time() - before, time.time(), []

    def batch(size: int) -> torch.Tensor:
        """Crops [size, length], some softer than the renders. Most start on the 40 ms grid as whole clips do."""
        clip = torch.randint(len(clips), (size, 1), device=args.device)
        start = torch.randint(clips.shape[1] - length, (size, 1), device=args.device)
        aligned = torch.rand(size, 1, device=args.device) < 0.8
        start = torch.where(aligned, start // model.config.samples_per_frame * model.config.samples_per_frame, start)
        values = clips[clip, start + torch.arange(length, device=args.device)].float() / 32768
        soft = torch.rand(size, 1, device=args.device) < 0.25
        return values * torch.where(soft, 0.3 + 0.7 * torch.rand(size, 1, device=args.device), 1.0)

    while step < args.steps and (passed := time.time() - began) < args.minutes * 60:
        progress = max(step / args.steps, passed / (args.minutes * 60))
        rate = args.learning_rate * min(1, (step + 1) / 50) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        target = model.log_magnitudes(batch(args.batch))
        z = model.embed(target)
        commitment = z.new_zeros(())
        if step == args.warm_steps:
            with torch.no_grad():
                crops = [model.embed(model.log_magnitudes(batch(64))).flatten(0, 1) for _ in range(5)]
                averages.start(torch.cat(crops))
        if step >= args.warm_steps:
            with torch.no_grad():
                codes = model.quantizer.encode(z)
                quantized = model.quantizer.decode(codes)
                averages.update(z.flatten(0, 1), codes.transpose(1, 2).flatten(0, 1))
            commitment = F.mse_loss(z, quantized)
            z = z + (quantized - z).detach()  # gradients pass straight through the quantiser
        reconstruction = loss_of(model.reconstruct(z), target)
        optimizer.zero_grad()
        (reconstruction + 0.1 * commitment).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        recent.append(reconstruction.item())
        if step % 50 == 0:
            used = codes.transpose(0, 1).flatten(1) if step > args.warm_steps else []
            print(
                f"step {step}, {time.time() - began:.0f} s: loss {np.mean(recent):.4f}, "
                f"commitment {commitment.item():.3f}, codes used in a batch {[len(c.unique()) for c in used]}",
                flush=True,
            )
            recent = []
        if time.time() - saved_at > 120:
            checkpoint(resume, training_state(model, optimizer, averages), step, time.time() - began)
            saved_at = time.time()
    checkpoint(resume, training_state(model, optimizer, averages), step, time.time() - began)
    save(model.eval(), args.out)


if __name__ == "__main__":
    main()
