"""Sharpen a speech codec's decoder: its codes stay as they are, so do the models that were trained on them.

  python train/make_codec_data.py --out data/speech_codec
  python train/codec_decoder.py train/configs/codec_decoder.yaml --data data/speech_codec --out out/speech \\
      --device cuda
  python train/codec_decoder.py out/speech_training/settings.yaml --resume

Encoder and codebooks of `codec` are kept; the decoder learns from the mel loss and, after the first steps, from a
larger adversary than codec_speech.py affords. Crops keep all levels, one, or some number between, as there. Data: as
there, without a teacher's targets.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from codec_files import export, load_codec
from codec_losses import Adversary, MelLoss
from codec_speech import Crops, load_clips, random_crops, some_levels, validate
from codec_training import Run, RunSettings
from settings import parse, run_script
from torch.nn import functional as F

from modeling_anygpt.codecs import SpeechTokenizerModel

WINDOWS = (2048, 1024, 512, 256, 128)  # of the adversary's spectra, samples


@dataclass
class Recipe(Crops):
    codec: Path = field(metadata={"help": "folder of the codec to start from"})
    adversary_from: int = field(metadata={"help": "steps before it joins"})
    adversary_width: int = field(metadata={"help": "channels of its first layer"})


def main(argv: list[str]) -> None:
    recipe, settings = parse((Recipe, RunSettings), argv, __doc__)
    run = Run(settings, recipe)
    model = load_codec(SpeechTokenizerModel, recipe.codec).to(run.device)
    decoder = model.decoder.requires_grad_(True).train()
    hop, rate = model.config.hop_length, model.config.sampling_rate
    clips = load_clips(recipe, None, hop, run.device)
    adversary, mel = Adversary(WINDOWS, recipe.adversary_width).to(run.device), MelLoss(rate).to(run.device)
    optimizer = torch.optim.AdamW(decoder.parameters(), recipe.learning_rate, betas=(0.8, 0.99))
    judge = torch.optim.AdamW(adversary.parameters(), 3e-4, betas=(0.8, 0.99))
    parts = {"decoder": decoder, "optimizer": optimizer, "adversary": adversary, "judge": judge}

    for step in run.steps(recipe.steps, parts, validate=lambda stem: validate(stem, model, mel, clips.heldout)):
        optimizer.param_groups[0]["lr"] = recipe.rate_at(step)
        _, real = random_crops(clips, recipe, hop)
        with run.autocast():
            levels = model.quantizer.lookup(model.encode(real), 0)  # [K, B, D, frames]
            made = decoder(some_levels(levels))[:, 0].float()
            verdict = adversary.loss(real, made)
        run.learn(verdict, judge)
        sound = mel(made, real)
        loss = sound + 0.2 * F.l1_loss(made, real)
        if step >= recipe.adversary_from:
            with run.autocast():
                loss = loss + min(1, (step - recipe.adversary_from) / 500) * adversary.loss_of_codec(real, made)
        run.learn(loss, optimizer, clip=1.0)
        run.note(mel=sound, adversary=verdict)
    if run.is_main:
        export(model.eval(), settings.out)


if __name__ == "__main__":
    run_script(main)
