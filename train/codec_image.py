"""Train the image codec.

  python train/data_image.py pictures --out data/images/pictures_train.npz
  python train/codec_image.py train/configs/codec_image.yaml --data data/images/pictures_train.npz --out out/image
  accelerate launch train/codec_image.py out/image_training/settings.yaml --resume

A stock diffusers `VQModel` (VQ-GAN's convolutional autoencoder, Esser et al. 2021, without the adversary): 64x64 px
to an 8x8 grid of codes of 512. The codebook rows stay on the unit sphere, where nearest means the smallest angle
(Yu et al. 2022, arXiv 2110.04627). Not one of transformers' image VQs: all of them normalise in 32 fixed groups, which
at a width of 32 is each channel by itself, and a picture with one thing in it then loses its colour.

A codebook collapses if it is left alone: a few codes take everything. So the autoencoder first runs without one; then
the rows are drawn from its latents, follow them by moving averages, and rows that nothing chose for long are moved to
where the error is largest. Cells of bare paper must all take code 0, wherever they lie: they are most of a picture,
and a language model should not have to learn a hundred spellings of nothing.

After `steps` the codes are fixed; `decoder_steps` more improve the decoder alone, so that a language model can already
be trained on the codes. Resume with more of them (and --data of scenes only) to go on.

Data: an npz with `pictures` uint8 [N, S, S, 3]; the last ones are held out.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from codebook_averages import SphereAverages
from codec_files import read_arrays, whole_files
from codec_samples import write_pictures
from codec_training import Checked, Run, RunSettings
from diffusers import VQModel
from settings import parse, run_script

START_BATCHES = 20  # beside the current one, to draw the first codebook from
GROUPS = 4  # of the channels, normalised each


@dataclass
class Recipe(Checked):
    data: Path = field(metadata={"help": "npz with `pictures`; see data_image.py"})
    steps: int
    decoder_steps: int = field(metadata={"help": "steps after those, with the codes fixed"})
    warm: int = field(metadata={"help": "steps without a codebook"})
    batch: int = field(metadata={"help": "pictures, of each process"})
    learning_rate: float
    heldout: int = field(metadata={"help": "pictures at the end that are kept for validation"})
    codes: int
    embed_dim: int
    widths: list[int] = field(metadata={"help": "channels; each but the first halves the picture's side"})

    def __post_init__(self):
        super().__post_init__()
        if not self.widths or any(width < GROUPS or width % GROUPS for width in self.widths):
            raise ValueError(
                f"widths: got {self.widths}, allowed: multiples of {GROUPS}, in which channels are normalised."
            )


def load_pictures(recipe: Recipe) -> torch.Tensor:
    """uint8 [N, S, S, 3]."""
    (pictures,) = read_arrays(recipe.data, "pictures")
    factor, least = 2 ** (len(recipe.widths) - 1), recipe.heldout + 1
    square = pictures.ndim == 4 and pictures.shape[1] == pictures.shape[2] and pictures.shape[3] == 3
    if not square or pictures.dtype != np.uint8 or len(pictures) < least or pictures.shape[1] % factor:
        raise ValueError(
            f"{recipe.data} has pictures {pictures.dtype} {list(pictures.shape)}, allowed: uint8 [N, S, S, 3], N from "
            f"{least} (heldout + 1), S a multiple of {factor} (widths)."
        )
    cells = (1 + START_BATCHES) * recipe.batch * (pictures.shape[1] // factor) ** 2
    if recipe.codes > cells:
        raise ValueError(
            f"codes: got {recipe.codes}, allowed: up to the {cells} cells of {1 + START_BATCHES} batches, from which "
            "the codebook starts. Enlarge batch."
        )
    return torch.from_numpy(pictures)


def to_values(pictures: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [B, S, S, 3] -> float [B, 3, S, S] in [-1, 1]."""
    return pictures.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def build(recipe: Recipe, size: int) -> VQModel:
    model = VQModel(
        down_block_types=("DownEncoderBlock2D",) * len(recipe.widths),
        up_block_types=("UpDecoderBlock2D",) * len(recipe.widths),
        block_out_channels=tuple(recipe.widths),
        layers_per_block=1,
        latent_channels=recipe.embed_dim,
        vq_embed_dim=recipe.embed_dim,
        num_vq_embeddings=recipe.codes,
        norm_num_groups=GROUPS,
        mid_block_add_attention=False,
        lookup_from_codebook=True,  # decode(codes, force_not_quantize=True, shape=...) takes codes
        sample_size=size,
    )
    model.quantize.embedding.weight.requires_grad_(False)
    return model


def reconstruction_loss(made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """L1, squared error and L1 of the gradients of [B, 3, S, S] in [-1, 1]; places near ink weigh four times paper."""
    ink = F.max_pool2d((1 - real).amax(1, keepdim=True).clamp(max=1), 7, stride=1, padding=3)
    weight = 0.25 + 0.75 * ink
    difference = made - real
    edges = difference.diff(dim=3).abs().mean() + difference.diff(dim=2).abs().mean()
    return (weight * (difference.abs() + difference**2)).mean() + edges


def decibel(made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of pictures in [-1, 1]."""
    return -10 * torch.log10((made.detach().clamp(-1, 1) - real).pow(2).mean() / 4)


def rate_of(step: int, recipe: Recipe) -> float:
    if step < recipe.steps:
        falling = 0.02 + 0.98 * (0.5 + 0.5 * np.cos(np.pi * step / recipe.steps))
        return recipe.learning_rate * min(1.0, (step + 1) / 50) * falling
    falling = 1 + np.cos(np.pi * (step - recipe.steps) / recipe.decoder_steps)
    return recipe.learning_rate * (0.01 + 0.25 * falling)


def embed(model: VQModel, real: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, S, S] -> unit vectors [B, D, S', S'], float32."""
    return F.normalize(model.quant_conv(model.encoder(real)).float(), dim=1)


def as_rows(latents: torch.Tensor) -> torch.Tensor:
    """[B, D, S', S'] -> [B * S' * S', D]."""
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


@torch.no_grad()
def validate(stem: Path, model: VQModel, averages: SphereAverages, real: torch.Tensor) -> dict[str, float]:
    """Held-out pictures [B, 3, S, S], before and after."""
    latents = embed(model, real)
    codes = averages.assign(as_rows(latents))
    rows = model.quantize.embedding.weight[codes].view(len(real), *latents.shape[2:], -1).permute(0, 3, 1, 2)
    made = model.decoder(model.post_quant_conv(rows))
    write_pictures(stem, [values.permute(0, 2, 3, 1).cpu().numpy() for values in (real, made)])
    return {"dB": float(decibel(made, real))}


def export(model: VQModel, folder: Path) -> None:
    """Weights as float16 on disk; diffusers' from_pretrained gives float32 unless it is told otherwise."""
    stored = VQModel.from_config(model.config)
    stored.load_state_dict(model.state_dict())
    with whole_files(folder) as temporary:
        stored.half().save_pretrained(temporary)


def main(argv: list[str]) -> None:
    recipe, settings = parse((Recipe, RunSettings), argv, __doc__)
    run = Run(settings, recipe)
    pictures = load_pictures(recipe)
    count = len(pictures) - recipe.heldout
    heldout = to_values(pictures[count:][:16], run.device)
    model = build(recipe, pictures.shape[1]).to(run.device).train()
    averages = SphereAverages(model.quantize.embedding.weight)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=recipe.learning_rate, betas=(0.9, 0.98))

    def batch() -> torch.Tensor:
        return to_values(pictures[torch.randint(count, (recipe.batch,))], run.device)

    for step in run.steps(
        recipe.steps + recipe.decoder_steps,
        {"model": model, "averages": averages, "optimizer": optimizer},
        remark=lambda: f"rows in use {averages.in_use()}",
        validate=(lambda stem: validate(stem, model, averages, heldout)) if len(heldout) else None,
    ):
        real = batch()
        with torch.set_grad_enabled(step < recipe.steps), run.autocast():
            latents = embed(model, real)
        z = as_rows(latents)  # [B * cells, D]
        quantised, commitment = latents, torch.zeros((), device=run.device)
        if step >= recipe.warm:
            factor = real.shape[3] // latents.shape[3]
            paper = F.avg_pool2d((real < 1).any(1, keepdim=True).float(), factor).flatten() == 0  # [B * cells], no ink
            if step == recipe.warm:  # the rows start on latents that differ: most cells are the same white paper
                with torch.no_grad():
                    seen = torch.cat([z, *(as_rows(embed(model, batch())) for _ in range(START_BATCHES))])
                weight = 1 - seen @ F.normalize(seen.median(dim=0).values, dim=0)
                averages.put(slice(None), seen[torch.multinomial(weight.clamp_min(1e-6), recipe.codes)])
                blank = z.detach()[paper] if paper.any() else z.detach()[:1]
                averages.put(0, F.normalize(blank.mean(dim=0), dim=0))
            codes = averages.assign(z)
            if step < recipe.steps:
                codes = codes.masked_fill(paper, 0)
                averages.follow(z.detach(), codes)
            nearest = model.quantize.embedding.weight[codes]
            commitment = ((z - nearest).pow(2).sum(1) * (1 + 3 * paper)).mean()
            chosen = z + (nearest - z).detach()
            quantised = chosen.view(recipe.batch, *latents.shape[2:], -1).permute(0, 3, 1, 2)
        with run.autocast():
            made = model.decoder(model.post_quant_conv(quantised))
        made = made.float()
        loss = reconstruction_loss(made, real)
        optimizer.param_groups[0]["lr"] = rate_of(step, recipe)
        run.learn(loss + 0.25 * commitment, optimizer, clip=1.0)
        run.note(loss=loss, commitment=commitment, dB=decibel(made, real))
    if run.is_main:
        export(model, settings.out)


if __name__ == "__main__":
    run_script(main)
