"""Stable Diffusion unCLIP as the painter of image codes: embeddings in, pictures out.

It is diffusers' `StableUnCLIPImg2ImgPipeline` with the two differences of the copy that AnyGPT runs: embeddings come
ready, so that CLIP's image encoder (0.63 G parameters) is neither loaded nor needed, and what to steer away from may
be an embedding too. Guidance 10, 20 steps and noise level 0 are AnyGPT's (SEED's `ImageTokenizer`).

Importing this imports diffusers, so it is imported when a decoder is needed. It imports nothing from its siblings: it
can be shipped beside the weights as remote code.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableUnCLIPImg2ImgPipeline

NOISE_LEVEL = 0  # of the embedding, which is as SEED-2 made it


class UnclipDecoder(StableUnCLIPImg2ImgPipeline):
    """Pictures from embeddings `[B, D]`; in float16 on a GPU, in float32 elsewhere."""

    _optional_components = ["feature_extractor", "image_encoder"]

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> "UnclipDecoder":
        """Reads a saved unCLIP pipeline, of the folder's files those that are used."""
        check_folder(folder)
        decoder = cls.from_pretrained(
            folder, feature_extractor=None, image_encoder=None, dtype=_dtype(device), use_safetensors=True
        )
        decoder.set_progress_bar_config(disable=True)
        return decoder.to(device)

    def to(self, device: str | torch.device) -> "UnclipDecoder":
        """Moves the pipeline, to the precision of the device."""
        dtype = _dtype(device)
        return super().to(device) if self.unet.dtype == dtype else super().to(device, dtype)

    def decode(
        self,
        embeddings: torch.Tensor,
        negative: torch.Tensor | None = None,
        steps: int = 20,
        guidance: float = 10.0,
        generators: Sequence[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """Embeddings to pictures.

        Args:
            embeddings: [B, D], D as CLIP's (1024 for Stable Diffusion 2.1 unCLIP).
            negative: [B, D], embeddings of what to steer away from; needs guidance. None: zeros, as trained.
            steps: of the diffusion; more is better and slower.
            guidance: how much to exaggerate what the embedding adds; 1 is nothing, at half the cost.
            generators: one for each picture, which then does not depend on the others. None: torch's own draws.

        Returns:
            pictures [B, 3, H, W], float32 in [-1, 1].
        """
        width = self.image_normalizer.config.embedding_dim
        for given in (embeddings,) if negative is None else (embeddings, negative):
            if given.shape != (len(embeddings), width):
                raise ValueError(
                    f"Got embeddings of shape {list(given.shape)}, this pipeline takes [{len(embeddings)}, {width}]. "
                    "Use the unCLIP whose CLIP model the image codec was trained with."
                )
        if steps < 1 or guidance < 1:
            raise ValueError(f"Got steps={steps} and guidance={guidance}, allowed are 1 and more.")
        if negative is not None and guidance == 1:
            raise ValueError(
                "Got negative codes with guidance=1, which ignores them. Raise guidance or leave them out."
            )
        given = embeddings if negative is None else torch.cat([embeddings, negative])
        output = self(
            prompt=[""] * len(embeddings),
            image_embeds=given.to(self.unet.device, self.unet.dtype),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=None if generators is None else list(generators),
            noise_level=NOISE_LEVEL,
            output_type="pt",
        )
        return output.images.float() * 2 - 1

    def _encode_image(
        self,
        image,
        device,
        batch_size,
        num_images_per_prompt,
        do_classifier_free_guidance,
        noise_level,
        generator,
        image_embeds,
    ):
        """As upstream's for ready embeddings; of `image_embeds` [B or 2B, D] the second half, if any, is negative."""
        wanted = self.noise_image_embeddings(image_embeds[:batch_size], NOISE_LEVEL, generator=generator)
        if not do_classifier_free_guidance:
            return wanted
        unwanted = torch.zeros_like(wanted)
        if len(image_embeds) > batch_size:
            unwanted = self.noise_image_embeddings(image_embeds[batch_size:], NOISE_LEVEL, generator=generator)
        return torch.cat([unwanted, wanted])


def check_folder(folder: str | Path) -> None:
    """Raises a ValueError unless `folder` holds an unCLIP pipeline in the layout of diffusers."""
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{folder} has no model_index.json. Pass the folder of a diffusers pipeline.")
    try:
        kind = json.loads(index.read_text()).get("_class_name")
    except (ValueError, AttributeError):
        raise ValueError(f"{index} is damaged. Download it again.") from None
    allowed = (StableUnCLIPImg2ImgPipeline.__name__, UnclipDecoder.__name__)
    if kind not in allowed:
        raise ValueError(f"{folder} is a {kind}, need a {allowed[0]}, such as Stable Diffusion 2.1 unCLIP.")


def _dtype(device: str | torch.device) -> torch.dtype:
    return torch.float16 if torch.device(device).type == "cuda" else torch.float32
