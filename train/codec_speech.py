"""Train a speech codec (modeling_anygpt/codecs/speech_tokenizer.py); meant for a GPU, hours on a CPU.

  python train/make_codec_data.py --out data/speech_codec
  python train/codec_speech.py train/configs/codec_speech.yaml --data data/speech_codec --out out/speech --device cuda
  accelerate launch train/codec_speech.py out/speech_training/settings.yaml --resume

After `warm` steps without quantiser the codebooks start from data and follow moving averages. Every item of a batch
keeps all levels, one, or some number between, so that any first few levels are speech. Level 1 learns the words from a
teacher (speech_teachers.py): phone labels, frame features on file, or a speech model of the Hub. In the last part of
the steps an adversary on spectrograms joins the mel loss.

Data: clips_NAME.npz with `audio` int16 [F * 320], 16 kHz mono; for the teacher "phones" also `phones` int8 [F], -1
where unknown; for the teacher "features" features_NAME.npy float [F, D] beside each. The end of each file is held out.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from codebook_averages import CodebookAverages
from codec_files import export, read_array, read_arrays
from codec_losses import Adversary, MelLoss
from codec_samples import write_sounds
from codec_training import Checked, Run, RunSettings
from settings import parse, run_script
from speech_teachers import FrameFeatures, PhoneLabels, SpeechModel
from torch.nn import functional as F

from modeling_anygpt.codecs.speech_tokenizer import SpeechTokenizerConfig, SpeechTokenizerModel

SHORTEST = 4  # frames of 320 samples that hold half of the mel loss' longest window


@dataclass
class Crops(Checked):
    """What is trained on, and for how long."""

    data: Path = field(metadata={"help": "folder of clips_*.npz"})
    steps: int
    batch: int = field(metadata={"help": "crops, of each process"})
    frames: int = field(metadata={"help": "length of a crop, 20 ms each"})
    learning_rate: float
    heldout: int = field(metadata={"help": "frames at the end of each file that are kept for validation"})

    def __post_init__(self):
        super().__post_init__()
        for key in ("frames", "heldout"):
            if getattr(self, key) < SHORTEST:
                raise ValueError(f"{key}: got {getattr(self, key)}, allowed: {SHORTEST} or more, for the mel loss.")

    def rate_at(self, step: int) -> float:
        """The learning rate: rises over 100 steps, then falls as a cosine to 2 %."""
        falling = 0.02 + 0.49 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * (min(1, (step + 1) / 100) * falling)


@dataclass
class Recipe(Crops):
    warm: int = field(metadata={"help": "steps without quantiser"})
    adversary_from: float = field(metadata={"help": "share of the steps before it joins; 1: never"})
    teacher: str = field(metadata={"help": "phones, features, or folder or Hub id of a speech model"})
    teacher_weight: float


@dataclass
class Sizes(Checked):
    """Of SpeechTokenizerConfig."""

    n_filters: int
    dimension: int
    semantic_dimension: int
    codebook_size: int
    num_codebooks: int
    lstm_layers: int


@dataclass
class Clips:
    audio: torch.Tensor  # int16 [F * hop], all clips end to end
    targets: torch.Tensor | None  # [F] phones or [F, D] features, if the teacher wants them
    heldout: torch.Tensor  # float [N, heldout * hop], N <= 4


def load_clips(recipe: Crops, teacher: str | None, hop: int, device: torch.device) -> Clips:
    files = sorted(recipe.data.glob("clips_*.npz"))
    if not files:
        raise ValueError(f"No clips_*.npz in {recipe.data}: make them with train/make_codec_data.py.")
    audio, targets, heldout = [], [], []
    for file in files:
        target = None
        if teacher == "phones":
            sound, target = read_arrays(file, "audio", "phones")
        else:
            (sound,) = read_arrays(file, "audio")
        if teacher == "features":
            target = read_array(file.with_name(file.name.replace("clips_", "features_", 1)).with_suffix(".npy"))
        frames = len(sound) // hop
        whole = sound.dtype == np.int16 and sound.ndim == 1 and len(sound) % hop == 0
        if not whole or target is not None and len(target) != frames:
            shape = " x ".join(map(str, sound.shape))
            got = f"{shape} samples of {sound.dtype}" + ("" if target is None else f", {len(target)} targets")
            raise ValueError(f"{file} has {got}; allowed: int16, {hop} samples to a frame. Make it again.")
        least = recipe.heldout + recipe.frames + 1
        if frames < least:
            raise ValueError(f"{file} has {frames} frames, allowed {least} or more. Lower heldout or frames.")
        train = frames - recipe.heldout
        audio.append(sound[: train * hop])
        targets.append(None if target is None else target[:train])
        heldout.append(sound[train * hop :])
    if teacher == "phones" and all((target < 0).all() for target in targets):
        raise ValueError(
            f"No frame of {recipe.data} has a phone, which would teach codes nothing about words. Add voices "
            "(make_codec_data.py --minutes), or take another teacher."
        )
    some = [heldout[i] for i in np.linspace(0, len(files) - 1, min(4, len(files))).astype(int)]
    return Clips(
        torch.from_numpy(np.concatenate(audio)).to(device),
        None if targets[0] is None else torch.from_numpy(np.concatenate(targets)).to(device),
        torch.from_numpy(np.stack(some)).to(device).float() / 32768,
    )


def make_teacher(recipe: Recipe, targets: torch.Tensor | None, width: int, device: torch.device):
    if recipe.teacher == "phones":
        return PhoneLabels(targets.long(), width)
    if recipe.teacher == "features":
        return FrameFeatures(targets, width)
    return SpeechModel(recipe.teacher, width, device)


def random_crops(clips: Clips, recipe: Crops, hop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frame numbers [B, frames] and their sound [B, frames * hop], up to half a frame late and more or less loud."""
    device, total = clips.audio.device, len(clips.audio) // hop
    frames = torch.randint(total - recipe.frames, (recipe.batch, 1), device=device)
    late = torch.randint(hop // 2, (recipe.batch, 1), device=device)
    samples = frames * hop + late + torch.arange(recipe.frames * hop, device=device)
    loudness = 0.3 + 0.7 * torch.rand(recipe.batch, 1, device=device)
    return frames + torch.arange(recipe.frames, device=device), clips.audio[samples].float() / 32768 * loudness


def random_levels(count: int, levels: int, device: torch.device) -> torch.Tensor:
    """How many levels each of `count` items keeps: all of them for 55 %, one for 10 %, else 1 to levels - 1."""
    draw = torch.rand(count, device=device)
    some = torch.randint(1, max(2, levels), (count,), device=device)
    return torch.where(draw < 0.55, levels, torch.where(draw > 0.9, 1, some))


def some_levels(levels: torch.Tensor) -> torch.Tensor:
    """Vectors of the levels [K, B, ., .] -> the sum of those that each item keeps [B, ., .]."""
    keep = random_levels(levels.shape[1], len(levels), levels.device)
    mask = keep > torch.arange(len(levels), device=levels.device)[:, None]  # [K, B]
    return (levels * mask[..., None, None]).sum(0)


@torch.no_grad()
def validate(stem: Path, model: SpeechTokenizerModel, mel: MelLoss, real: torch.Tensor) -> dict[str, float]:
    """Held-out sound [N, T] as it is, from all levels and from level 1 alone."""
    codes = model.encode(real)
    versions = {f"mel of {n} levels": model.decode(codes[:, :n]) for n in (codes.shape[1], 1)}
    write_sounds(stem, [wave.cpu().numpy() for wave in (real, *versions.values())], model.config.sampling_rate)
    return {name: float(mel(made, real)) for name, made in versions.items()}


def main(argv: list[str]) -> None:
    recipe, sizes, settings = parse((Recipe, Sizes, RunSettings), argv, __doc__)
    config = SpeechTokenizerConfig(**asdict(sizes))
    run = Run(settings, recipe, sizes)
    clips = load_clips(recipe, recipe.teacher, config.hop_length, run.device)
    teacher = make_teacher(recipe, clips.targets, config.semantic_dimension, run.device)
    model = SpeechTokenizerModel(config).to(run.device).train()
    adversary, mel = Adversary().to(run.device), MelLoss(config.sampling_rate).to(run.device)
    averages = CodebookAverages([b.embed for b in model.quantizer.codebooks], decay=0.98, dead=0.03, revived=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, betas=(0.8, 0.99))
    judge = torch.optim.AdamW(adversary.parameters(), 3e-4, betas=(0.8, 0.99))
    joins = max(recipe.warm + 1, round(recipe.adversary_from * recipe.steps))
    parts = {"model": model, "averages": averages, "optimizer": optimizer, "adversary": adversary, "judge": judge}

    for step in run.steps(
        recipe.steps,
        parts,
        remark=lambda: f"codes used in a batch {averages.used.tolist()}",
        validate=lambda stem: validate(stem, model, mel, clips.heldout),
    ):
        optimizer.param_groups[0]["lr"] = recipe.rate_at(step)
        frames, real = random_crops(clips, recipe, config.hop_length)
        with run.autocast():
            z = model.encoder(real[:, None])  # [B, D, frames]
        z = z.float()
        kept, first, commitment = z, z, z.new_zeros(())
        if step >= recipe.warm:
            flat = z.transpose(1, 2)  # [B, frames, D]
            vectors = flat.detach().flatten(0, 1)
            if step == recipe.warm:
                averages.start(vectors, rounds=0)
            levels = averages.quantise(vectors).unflatten(1, flat.shape[:2])  # [K, B, frames, D]
            commitment = sum(F.mse_loss(flat, below) for below in levels.cumsum(0))
            # gradients pass straight through the quantiser
            kept, first = (z + (part.transpose(1, 2) - z).detach() for part in (some_levels(levels), levels[0]))
        with run.autocast():
            made = model.decoder(kept)[:, 0]
            predicted = model.transform(first.transpose(1, 2))
        made = made.float()
        words, score = teacher.loss(predicted.float(), frames, real)
        sound = mel(made, real)
        loss = sound + 0.2 * F.l1_loss(made, real) + 0.09 * commitment + recipe.teacher_weight * words
        verdict = z.new_zeros(())
        if step >= joins:
            half = max(1, recipe.batch // 2)  # the adversary sees half of the batch
            with run.autocast():
                verdict = adversary.loss(real[:half], made[:half])
            run.learn(verdict, judge)
            with run.autocast():
                loss = loss + min(1, (step - joins) / 500) * adversary.loss_of_codec(real[:half], made[:half])
        run.learn(loss, optimizer, clip=1.0)
        run.note(**{"mel": sound, "commitment": commitment, teacher.name: score, "adversary": verdict})
    if run.is_main:
        export(model.eval(), settings.out)


if __name__ == "__main__":
    run_script(main)
