"""Train the speech codec of anygpt-tiny (modeling_anygpt/codecs/speech_tokenizer.py); meant for a GPU, hours on a CPU.

  python train/make_codec_data.py --out data/speech_codec --asterisk /usr/share/asterisk/sounds/en_US_f_Allison
  python train/codec_speech.py --data data/speech_codec --out speech_codec --device cuda

After --warm steps without quantiser the codebooks start from data and follow moving averages. Every item of a batch
keeps all levels, one, or some number between, so that any first few levels are speech. Level 1 learns the words:
entries 0 to 39 of its transformed features are logits of the phone spoken (SpeechTokenizer distils HuBERT here; phones
by forced alignment need no teacher). In the last part of the steps an adversary on spectrograms joins the mel loss.
--resume goes on from OUT/training.safetensors. OUT becomes a `from_pretrained` folder, float16 on disk.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank

from modeling_anygpt.codecs.speech_tokenizer import SpeechTokenizerConfig, SpeechTokenizerModel

CONFIG = SpeechTokenizerConfig(n_filters=20, dimension=256, semantic_dimension=64, lstm_layers=1)
MEL_BANDS = {256: 20, 512: 40, 1024: 80, 2048: 80}  # by window, samples
PHONES = 40


class CodebookAverages:
    """Trains the codebooks: a code moves to the average of what it stands for, an unused one to a current vector."""

    def __init__(self, model: SpeechTokenizerModel, decay: float = 0.98):
        self.books = [book.embed for book in model.quantizer.codebooks]  # K x [codes, D]
        self.sums = [book.clone() for book in self.books]
        self.counts = [torch.ones(len(book), device=book.device) for book in self.books]
        self.decay = decay

    def quantise(self, z: torch.Tensor, keep: torch.Tensor, start: bool):
        """Quantise and learn from z [B, D, T]; item b keeps keep[b] levels. `start` makes the codebooks from z.

        Returns the kept levels' sum and level 1, both [B, D, T] with gradients passed straight through, the commitment
        loss, and how many codes of each level the batch used.
        """
        residual, total, first, commitment, used = z.transpose(1, 2), 0, None, 0, []
        for level, (book, sums, counts) in enumerate(zip(self.books, self.sums, self.counts, strict=True)):
            vectors = residual.detach().flatten(0, 1)
            with torch.no_grad():
                if start:
                    book.copy_(pick(vectors, len(book)) + 0.01 * vectors.std() * torch.randn_like(book))
                    sums.copy_(book)
                code = (2 * vectors @ book.T - book.square().sum(1)).argmax(1)
                chosen = book[code].view_as(residual)
                self._follow(book, sums, counts, vectors, code)
            commitment = commitment + F.mse_loss(residual, chosen)
            total = total + chosen * (keep > level)[:, None, None]
            first = chosen if level == 0 else first
            residual = residual - chosen
            used.append(code.unique().numel())
        through = [z + (part.transpose(1, 2) - z).detach() for part in (total, first)]
        return *through, commitment, used

    def _follow(self, book, sums, counts, vectors, code):
        counts.lerp_(torch.bincount(code, minlength=len(book)).float(), 1 - self.decay)
        sums.lerp_(torch.zeros_like(sums).index_add_(0, code, vectors), 1 - self.decay)
        usual = len(vectors) / len(book)
        dead = counts < 0.03 * usual
        counts[dead] = 0.1 * usual
        sums[dead] = pick(vectors, int(dead.sum())) * 0.1 * usual
        book.copy_(sums / counts[:, None])


def pick(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """`count` random rows of vectors [N, D], with repeats."""
    return vectors[torch.randint(len(vectors), (count,), device=vectors.device)]


class MelLoss(nn.Module):
    """Mean over windows of L1 of log mel spectra plus a tenth of L1 of magnitudes, between waves [B, T]."""

    def __init__(self, rate: int):
        super().__init__()
        for size, bands in MEL_BANDS.items():
            mel = mel_filter_bank(size // 2 + 1, bands, 0.0, rate / 2, rate, norm="slaney", mel_scale="htk")
            self.register_buffer(f"mel{size}", torch.tensor(mel.T, dtype=torch.float32))

    def forward(self, made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        loss = 0
        for size in MEL_BANDS:
            mel = getattr(self, f"mel{size}") * 100  # Slaney's norm divides by the bandwidth in Hz: back to about 1
            a, b = (spectrum(wave, size).abs() for wave in (made, real))
            loss = loss + F.l1_loss((mel @ a + 1e-3).log(), (mel @ b + 1e-3).log()) + 0.1 * F.l1_loss(a, b)
        return loss / len(MEL_BANDS)


def spectrum(wave: torch.Tensor, size: int) -> torch.Tensor:
    """Wave [B, T] -> complex [B, size / 2 + 1, frames], a quarter window apart."""
    window = torch.hann_window(size, device=wave.device)
    return torch.stft(wave, size, size // 4, window=window, return_complex=True)


class Adversary(nn.Module):
    """Encodec's multi-scale STFT discriminator, small: wave [B, T] -> per window (verdict, features of each layer)."""

    def __init__(self, windows=(1024, 512, 256), width: int = 16):
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.windows = windows
        self.stacks = nn.ModuleList()
        for _ in windows:
            layers = [norm(nn.Conv2d(2, width, (3, 9), padding=(1, 4)))]
            for i, dilation in enumerate((1, 2, 4)):
                channels = width if i == 0 else 2 * width
                conv = nn.Conv2d(channels, 2 * width, (3, 9), (1, 2), (dilation, 4), (dilation, 1))
                layers.append(norm(conv))
            layers += [
                norm(nn.Conv2d(2 * width, 2 * width, 3, padding=1)),
                norm(nn.Conv2d(2 * width, 1, 3, padding=1)),
            ]
            self.stacks.append(nn.ModuleList(layers))

    def forward(self, wave: torch.Tensor):
        verdicts = []
        for size, stack in zip(self.windows, self.stacks, strict=True):
            x = torch.view_as_real(spectrum(wave, size)).permute(0, 3, 2, 1) / size**0.5  # [B, 2, frames, frequencies]
            features = []
            for layer in stack[:-1]:
                x = F.leaky_relu(layer(x), 0.2)
                features.append(x)
            verdicts.append((stack[-1](x), features))
        return verdicts

    def loss(self, real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """Hinge loss of the adversary itself."""
        pairs = zip(self(real), self(made.detach()), strict=True)
        return sum(F.relu(1 - r).mean() + F.relu(1 + m).mean() for (r, _), (m, _) in pairs) / len(self.windows)

    def loss_of_codec(self, real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """What the codec pays: being recognised, and features unlike those of the real wave."""
        total = 0
        with torch.no_grad():
            goals = self(real)
        for (verdict, features), (_, goal) in zip(self(made), goals, strict=True):
            unlike = [F.l1_loss(f, g) / (g.abs().mean() + 1e-4) for f, g in zip(features, goal, strict=True)]
            total = total - 0.05 * verdict.mean() + 0.2 * sum(unlike) / len(unlike)
        return total / len(self.windows)


def load_data(folder: Path, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All shards -> audio int16 [F * 320], phone of each frame int64 [F], -1 where unknown."""
    files = sorted(folder.glob("clips_*.npz"))
    if not files:
        raise ValueError(f"No clips_*.npz in {folder}: make them with train/make_codec_data.py.")
    shards = [np.load(file) for file in files]
    audio, phones = (np.concatenate([shard[name] for shard in shards]) for name in ("audio", "phones"))
    return torch.from_numpy(audio).to(device), torch.from_numpy(phones).long().to(device)


def training_tensors(model, adversary, averages, optimizers) -> dict[str, torch.Tensor]:
    """Everything that training changes, by name."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"adversary.{name}": tensor for name, tensor in adversary.state_dict().items()}
    tensors |= {f"sums.{k}": tensor for k, tensor in enumerate(averages.sums)}
    tensors |= {f"counts.{k}": tensor for k, tensor in enumerate(averages.counts)}
    for name, optimizer in optimizers.items():
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{i}.{key}": tensor for key, tensor in state.items()}
    return tensors


def checkpoint(path: Path, step: int, *parts):
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in training_tensors(*parts).items()}
    save_file(tensors | {"step": torch.tensor(step)}, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def restore(path: Path, model, adversary, averages, optimizers, device: str) -> int:
    """Fill everything from a checkpoint -> the number of steps already done."""
    saved = load_file(path, device=device)
    for name, optimizer in optimizers.items():
        state: dict[int, dict] = {}
        for key in [key for key in saved if key.startswith(f"{name}.")]:
            _, i, entry = key.split(".")
            state.setdefault(int(i), {})[entry] = saved[key]
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    with torch.no_grad():
        for name, tensor in training_tensors(model, adversary, averages, {}).items():
            tensor.copy_(saved[name])
    return int(saved["step"])


def save(model: SpeechTokenizerModel, folder: Path):
    """float16 on disk; the config says float32, so `from_pretrained` widens the weights."""
    model.save_pretrained(folder, state_dict={k: v.detach().cpu().half() for k, v in model.state_dict().items()})
    path = folder / "config.json"
    path.with_suffix(".tmp").write_text(
        json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2) + "\n"
    )
    os.replace(path.with_suffix(".tmp"), path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of clips_*.npz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--warm", type=int, default=500, help="steps without quantiser")
    parser.add_argument(
        "--adversary-from", type=float, default=0.5, help="share of the steps before it joins; 1: never"
    )
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--frames", type=int, default=50, help="length of a crop, 20 ms each")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--log", type=int, default=100, help="steps between lines of output")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    args.out.mkdir(parents=True, exist_ok=True)
    audio, phones = load_data(args.data, args.device)
    model = SpeechTokenizerModel(CONFIG).to(args.device).train()
    adversary, mel = Adversary().to(args.device), MelLoss(CONFIG.sampling_rate).to(args.device)
    averages = CodebookAverages(model)
    optimizers = {
        "codec": torch.optim.AdamW(model.parameters(), args.learning_rate, betas=(0.8, 0.99)),
        "judge": torch.optim.AdamW(adversary.parameters(), 3e-4, betas=(0.8, 0.99)),
    }
    parts = (model, adversary, averages, optimizers)
    resume, done = args.out / "training.safetensors", 0
    if args.resume:
        done = restore(resume, *parts, device=args.device)
    joins = max(args.warm + 1, round(args.adversary_from * args.steps))
    levels, hop, began, sums = CONFIG.num_codebooks, CONFIG.hop_length, time.time(), np.zeros(3)

    for step in range(done, args.steps):
        rate = min(1, (step + 1) / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / args.steps)))
        optimizers["codec"].param_groups[0]["lr"] = args.learning_rate * rate

        frame = torch.randint(len(phones) - args.frames, (args.batch, 1), device=args.device)
        phone = phones[frame + torch.arange(args.frames, device=args.device)]  # [B, frames]
        real = audio[frame * hop + torch.arange(args.frames * hop, device=args.device)].float() / 32768  # [B, T]
        real = real * (0.3 + 0.7 * torch.rand(args.batch, 1, device=args.device))  # loudness

        z = model.encoder(real[:, None])  # [B, D, frames]
        kept, first, commitment, used = z, z, z.new_zeros(()), []
        if step >= args.warm:
            draw = torch.rand(args.batch, device=args.device)
            keep = torch.randint(1, levels, (args.batch,), device=args.device)
            keep = torch.where(draw < 0.55, levels, torch.where(draw > 0.9, 1, keep))
            kept, first, commitment, used = averages.quantise(z, keep, start=step == args.warm)
        made = model.decoder(kept)[:, 0]
        logits = model.transform(first.transpose(1, 2))[..., :PHONES]
        known = phone >= 0
        words = F.cross_entropy(logits[known], phone[known], label_smoothing=0.1) if known.any() else logits.sum() * 0
        sound = mel(made, real)
        loss = sound + 0.2 * F.l1_loss(made, real) + 0.09 * commitment + 0.15 * words
        if step >= joins:
            verdict = adversary.loss(real, made)
            optimizers["judge"].zero_grad()
            verdict.backward()
            optimizers["judge"].step()
            adversary.requires_grad_(False)
            loss = loss + min(1, (step - joins) / 500) * adversary.loss_of_codec(real, made)
            adversary.requires_grad_(True)
        optimizers["codec"].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers["codec"].step()

        right = (logits[known].argmax(-1) == phone[known]).float().mean() if known.any() else torch.zeros(())
        sums += [sound.item(), commitment.item(), right.item()]
        if (step + 1) % args.log == 0:
            sound_, commitment_, right_ = sums / args.log
            print(
                f"step {step + 1}, {time.time() - began:.0f} s: mel {sound_:.3f}, commitment {commitment_:.3f}, "
                f"phones right {right_:.3f}, codes used in a batch {used}",
                flush=True,
            )
            sums[:] = 0
        if (step + 1) % 1000 == 0 or step + 1 == args.steps:
            checkpoint(resume, step + 1, *parts)
    save(model.eval(), args.out)


if __name__ == "__main__":
    main()
