"""Train the image codec: python train/codec_image.py --data data/images/pictures_train.npz --out image_codec

A stock diffusers `VQModel` (VQ-GAN's convolutional autoencoder, Esser et al. 2021, without the adversary): 64x64 px
to an 8x8 grid of codes of 512. The codebook rows stay on the unit sphere, where nearest means the smallest angle
(Yu et al. 2022, arXiv:2110.04627). Not one of transformers' image VQs: all of them normalise in 32 fixed groups, which
at a width of 32 is each channel by itself, and a picture with one thing in it then loses its colour.

A codebook collapses if it is left alone: a few codes take everything. So the autoencoder first runs without one; then
the rows are drawn from its latents, follow them by moving averages (van den Oord et al. 2017, appendix), and rows that
nothing chose for long are moved to where the error is largest. Cells of bare paper must all take code 0, wherever they
lie: they are most of a picture, and a language model should not have to learn a hundred spellings of nothing.

After --steps the codes are fixed; --decoder-steps more improve the decoder alone, so that a language model can already
be trained on the codes. Run again with other values (and --data of scenes only) to go on from the saved state.

Data: an npz with `pictures` uint8 [N, 64, 64, 3].
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import VQModel
from safetensors.torch import load_file, save_file

DECAY = 0.98  # of the moving averages of the codebook, per step
DEAD = 0.02  # a row used less often than this per step is moved
COMMITMENT = 0.25


def build(args: argparse.Namespace) -> VQModel:
    model = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 4,  # three halvings: 64 px -> 8x8
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=args.embed_dim,
        vq_embed_dim=args.embed_dim,
        num_vq_embeddings=512,
        norm_num_groups=4,
        mid_block_add_attention=False,
        lookup_from_codebook=True,  # decode(codes, force_not_quantize=True, shape=...) takes codes
        sample_size=64,
    )
    return model.to(args.device).train()


class Codebook:
    """Moving averages behind the rows of the stock quantiser's embedding (the rows themselves get no gradient)."""

    def __init__(self, embedding: torch.nn.Embedding):
        self.rows = embedding.weight.requires_grad_(False)  # [512, D], unit length
        self.count = torch.ones(len(self.rows), device=self.rows.device)  # [512] uses per step
        self.total = self.rows.clone()  # [512, D] sum of the latents that chose a row, per step

    def set(self, chosen: torch.Tensor, latents: torch.Tensor) -> None:
        """Put the chosen rows (mask or slice) on the given latents."""
        self.rows[chosen] = latents
        self.count[chosen] = 1.0
        self.total[chosen] = latents

    @torch.no_grad()
    def assign(self, z: torch.Tensor) -> torch.Tensor:
        """Nearest row of each latent [M, D] -> [M]."""
        return (z @ self.rows.T).argmax(dim=1)

    @torch.no_grad()
    def update(self, z: torch.Tensor, codes: torch.Tensor) -> None:
        self.count.mul_(DECAY).index_add_(0, codes, torch.full_like(z[:, 0], 1 - DECAY))
        self.total.mul_(DECAY).index_add_(0, codes, z * (1 - DECAY))
        self.rows.copy_(F.normalize(self.total, dim=1))
        dead = self.count < DEAD
        if dead.any():
            error = 1 - (z * self.rows[codes]).sum(1)
            # Where the error is large, but not only in the very worst place.
            picks = torch.multinomial(error.clamp_min(1e-6), int(dead.sum()), replacement=True)
            self.set(dead, z[picks])


def reconstruction_loss(made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """L1, squared error and L1 of the gradients of [B, 3, S, S] in [-1, 1]; places near ink weigh four times paper."""
    ink = F.max_pool2d((1 - real).amax(1, keepdim=True).clamp(max=1), 7, stride=1, padding=3)
    weight = 0.25 + 0.75 * ink
    difference = made - real
    edges = difference.diff(dim=3).abs().mean() + difference.diff(dim=2).abs().mean()
    return (weight * (difference.abs() + difference**2)).mean() + edges


def learning_rate(step: int, args: argparse.Namespace) -> float:
    if step < args.steps:
        return args.lr * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * (0.5 + 0.5 * np.cos(np.pi * step / args.steps)))
    return args.lr * (0.01 + 0.25 * (1 + np.cos(np.pi * (step - args.steps) / args.decoder_steps)))


def save_state(folder: Path, model: VQModel, optimiser: torch.optim.Adam, book: Codebook, step: int) -> None:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {"book.count": book.count, "book.total": book.total}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value for name, value in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "state.tmp")
    os.replace(folder / "state.tmp", folder / "state.safetensors")
    (folder / "step.tmp").write_text(str(step))
    os.replace(folder / "step.tmp", folder / "step.txt")


def load_state(folder: Path, model: VQModel, optimiser: torch.optim.Adam, book: Codebook) -> int:
    tensors = load_file(folder / "state.safetensors")
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    book.count.copy_(tensors["book.count"])
    book.total.copy_(tensors["book.total"])
    state = optimiser.state_dict()
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, index, name = key.split(".")
            state["state"].setdefault(int(index), {})[name] = value
    optimiser.load_state_dict(state)
    return int((folder / "step.txt").read_text())


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    pictures = torch.from_numpy(np.load(args.data)["pictures"])  # [N, 64, 64, 3] uint8
    model = build(args)
    book = Codebook(model.quantize.embedding)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=args.lr, betas=(0.9, 0.98))
    work = args.out.with_name(args.out.name + "_state")
    first = load_state(work, model, optimiser, book) if (work / "step.txt").exists() else 0
    order, pool, begun = torch.Generator().manual_seed(args.seed + first), [], time.time()
    last = args.steps + args.decoder_steps - 1
    for step in range(first, last + 1):
        picks = torch.randint(len(pictures), (args.batch,), generator=order)
        real = pictures[picks].to(args.device).permute(0, 3, 1, 2).float() / 127.5 - 1  # [B, 3, S, S]
        with torch.set_grad_enabled(step < args.steps):
            latents = F.normalize(model.quant_conv(model.encoder(real)), dim=1)  # [B, D, S/8, S/8]
        z = latents.permute(0, 2, 3, 1).flatten(0, 2)  # [B*64, D]
        commitment = torch.zeros((), device=args.device)
        if step < args.warmup:
            pool = [*pool[-20:], z.detach()]
            quantised = latents
        else:
            paper = F.avg_pool2d((real < 1).any(1, keepdim=True).float(), 8).flatten() == 0  # [B*64] cells without ink
            if step == args.warmup:  # the rows start on latents that differ: most cells are the same white paper
                seen = torch.cat(pool)
                weight = 1 - seen @ F.normalize(seen.median(dim=0).values, dim=0)
                book.set(slice(None), seen[torch.multinomial(weight.clamp_min(1e-6), len(book.rows))])
                book.set(0, F.normalize(z.detach()[paper].mean(dim=0), dim=0))
            codes = book.assign(z)
            if step < args.steps:
                codes = codes.masked_fill(paper, 0)
                book.update(z.detach(), codes)
            nearest = book.rows[codes]
            commitment = ((z - nearest).pow(2).sum(1) * (1 + 3 * paper)).mean()
            chosen = (z + (nearest - z).detach()).view(args.batch, *latents.shape[2:], -1).permute(0, 3, 1, 2)
            quantised = chosen
        made = model.decoder(model.post_quant_conv(quantised))
        loss = reconstruction_loss(made, real)
        optimiser.param_groups[0]["lr"] = learning_rate(step, args)
        optimiser.zero_grad()
        (loss + COMMITMENT * commitment).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0 or step == last:
            psnr = -10 * torch.log10((made.detach().clamp(-1, 1) - real).pow(2).mean() / 4)
            used = int((book.count > 2 * DEAD).sum()) if step >= args.warmup else 0
            print(
                f"step {step} loss {loss:.4f} commitment {commitment:.4f} psnr {psnr:.1f} dB rows {used} "
                f"{time.time() - begun:.0f} s",
                flush=True,
            )
        if (step + 1) % args.save_every == 0 or step == last:
            save_state(work, model, optimiser, book, step + 1)
            export(model, args.out)


def export(model: VQModel, folder: Path) -> None:
    """Weights as float16 on disk; diffusers' from_pretrained gives float32 unless it is told otherwise."""
    stored = VQModel.from_config(model.config)
    stored.load_state_dict(model.state_dict())
    stored.half().save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="npz with `pictures`; see data_image.py")
    parser.add_argument(
        "--out", type=Path, required=True, help="codec folder; its state lies beside it in <out>_state"
    )
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--decoder-steps", type=int, default=0, help="steps after those, with the codes fixed")
    parser.add_argument("--warmup", type=int, default=200, help="steps without a codebook")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--embed-dim", type=int, default=16)
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
