"""Train the music codec (modeling_anygpt/codecs/spectral.py).

  python train/make_music_data.py --sound-font TimGM6mb.sf2 --clips 2400 --out data/music
  python train/codec_music.py train/configs/codec_music.yaml --data data/music --out out/music
  accelerate launch train/codec_music.py out/music_training/settings.yaml --resume

A plain regression of log magnitudes. After `warm` steps without quantiser the codebooks start from data, follow moving
averages of what they code, and codes that nothing uses any more are moved onto current data.

Data: clips_*.npy, int16 [N, T] at 16 kHz each, all of one T. The last clips are held out.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from codebook_averages import CodebookAverages
from codec_files import export, read_array
from codec_samples import write_sounds
from codec_training import Checked, Run, RunSettings
from settings import parse, run_script
from torch.nn import functional as F

from modeling_anygpt.codecs.spectral import SpectralCodecConfig, SpectralCodecModel


@dataclass
class Recipe(Checked):
    data: Path = field(metadata={"help": "folder of clips_*.npy"})
    steps: int
    warm: int = field(metadata={"help": "steps without quantiser"})
    batch: int = field(metadata={"help": "crops, of each process"})
    frames: int = field(metadata={"help": "code frames (40 ms) in a crop"})
    learning_rate: float
    heldout: int = field(metadata={"help": "clips at the end that are kept for validation"})


@dataclass
class Sizes(Checked):
    """Of SpectralCodecConfig."""

    num_codebooks: int
    codebook_size: int
    codebook_dim: int
    hidden_size: int
    encoder_layers: int
    decoder_layers: int


def load_clips(folder: Path, heldout: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """int16 clips to train on [N, T] and held out [heldout, T]."""
    files = sorted(folder.glob("clips_*.npy"))
    if not files:
        raise ValueError(f"No clips_*.npy in {folder}: make them with train/make_music_data.py.")
    arrays = [read_array(file) for file in files]
    for file, array in zip(files, arrays, strict=True):
        if array.dtype != np.int16 or array.ndim != 2 or array.shape[1:] != arrays[0].shape[1:]:
            first = list(arrays[0].shape[1:])
            raise ValueError(f"{file} is {array.dtype} {list(array.shape)}, allowed: int16 [N, T], T as in {first}.")
    clips = np.concatenate(arrays)
    if len(clips) <= heldout or clips.shape[1] <= length:
        raise ValueError(
            f"{folder} has {len(clips)} clips of {clips.shape[1]} samples, allowed: more than {heldout} (heldout) of "
            f"more than {length} (frames)."
        )
    return clips[: len(clips) - heldout], clips[len(clips) - heldout :]


def random_crops(clips: torch.Tensor, count: int, length: int, frame: int) -> torch.Tensor:
    """Crops [count, length], some softer than the renders. Most start on the 40 ms grid as whole clips do."""
    device = clips.device
    clip = torch.randint(len(clips), (count, 1), device=device)
    start = torch.randint(clips.shape[1] - length, (count, 1), device=device)
    aligned = torch.rand(count, 1, device=device) < 0.8
    start = torch.where(aligned, start // frame * frame, start)
    values = clips[clip, start + torch.arange(length, device=device)].float() / 32768
    soft = torch.rand(count, 1, device=device) < 0.25
    return values * torch.where(soft, 0.3 + 0.7 * torch.rand(count, 1, device=device), 1.0)


def loss_of(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 of log magnitudes [B, N, F]; loud bins count up to 8 times as much as silent ones, which are 9 of 10."""
    return ((predicted - target).abs() * (1 + target + 6.9)).mean()


@torch.no_grad()
def validate(stem: Path, model: SpectralCodecModel, real: torch.Tensor) -> dict[str, float]:
    """Held-out clips [N, T], before and after; the loss of their log magnitudes."""
    codes = model.encode(real)
    target = model.log_magnitudes(real)
    loss = loss_of(model.reconstruct(model.quantizer.decode(codes)), target)
    made = model.decode(codes)[:, : real.shape[1]]
    write_sounds(stem, [wave.cpu().numpy() for wave in (real, made)], model.config.sampling_rate)
    return {"loss": float(loss)}


def main(argv: list[str]) -> None:
    recipe, sizes, settings = parse((Recipe, Sizes, RunSettings), argv, __doc__)
    run = Run(settings, recipe, sizes)
    model = SpectralCodecModel(SpectralCodecConfig(**asdict(sizes))).to(run.device).train()
    frame = model.config.samples_per_frame
    length = recipe.frames * frame
    clips, heldout = map(torch.from_numpy, load_clips(recipe.data, recipe.heldout, length))
    clips, heldout = clips.to(run.device), heldout[:4].to(run.device).float() / 32768
    averages = CodebookAverages(list(model.quantizer.codebooks.data), decay=0.98, dead=0.02, revived=0.2)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, recipe.learning_rate, betas=(0.9, 0.98), weight_decay=1e-3)

    def vectors(count: int) -> torch.Tensor:
        """What the quantiser sees of random crops: [N, D]."""
        with torch.no_grad():
            return model.embed(model.log_magnitudes(random_crops(clips, count, length, frame))).flatten(0, 1)

    for step in run.steps(
        recipe.steps,
        {"model": model, "averages": averages, "optimizer": optimizer},
        remark=lambda: f"codes used in a batch {averages.used.tolist()}",
        validate=(lambda stem: validate(stem, model, heldout)) if len(heldout) else None,
    ):
        falling = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * min(1, (step + 1) / 50) * falling
        target = model.log_magnitudes(random_crops(clips, recipe.batch, length, frame))
        with run.autocast():
            z = model.embed(target)
        z = z.float()  # [B, T', D]
        commitment = z.new_zeros(())
        if step >= recipe.warm:
            if step == recipe.warm:
                averages.start(torch.cat([vectors(64) for _ in range(5)]), rounds=5)
            quantised = averages.quantise(z.detach().flatten(0, 1)).sum(0).view_as(z)
            commitment = F.mse_loss(z, quantised)
            z = z + (quantised - z).detach()  # gradients pass straight through the quantiser
        with run.autocast():
            made = model.reconstruct(z)
        loss = loss_of(made.float(), target)
        run.learn(loss + 0.1 * commitment, optimizer, clip=1.0)
        run.note(loss=loss, commitment=commitment)
    if run.is_main:
        export(model.eval(), settings.out)


if __name__ == "__main__":
    run_script(main)
