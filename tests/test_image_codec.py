"""The shipped image codec: a stock diffusers class, trained on the tiny world."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel
from PIL import Image

from processing_anygpt.tiny_world import language, pictures

FOLDER = Path(__file__).parents[1] / "modeling_anygpt" / "pretrained" / "anygpt_tiny" / "image_codec"
CAPTIONS = [
    "a big red circle",
    "a small yellow star",
    "a big purple heart above a small green cross",
    "a small blue triangle left of a big pink square",
    "a red circle and a blue square and a green star",
    "a yellow cross and a pink heart and a purple triangle",
]


@pytest.fixture(scope="module")
def codec() -> VQModel:
    return VQModel.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def values() -> torch.Tensor:  # [B, 3, 64, 64] in [-1, 1]
    rng = random.Random(0)
    stack = np.stack([np.asarray(pictures.draw(language.parse_scene(caption), rng)) for caption in CAPTIONS])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.inference_mode()
def encode(codec, values):  # [B, 64]
    return codec.quantize(codec.encode(values).latents)[2][2].view(len(values), -1)


@torch.inference_mode()
def decode(codec, codes):  # [B, 64] -> [B, 3, 64, 64]
    shape = (len(codes), 8, 8, codec.config.vq_embed_dim)
    return codec.decode(codes.reshape(-1), force_not_quantize=True, shape=shape).sample


def to_picture(values: torch.Tensor) -> Image.Image:
    pixels = (values.clamp(-1, 1) + 1) * 127.5
    return Image.fromarray(pixels.round().to(torch.uint8).permute(1, 2, 0).numpy())


def test_checkpoint_is_small_and_loads_as_float32(codec):
    assert codec.dtype == torch.float32
    assert sum(p.numel() for p in codec.parameters()) < 2.5e6
    assert (FOLDER / "diffusion_pytorch_model.safetensors").stat().st_size < 5e6
    config = json.loads((FOLDER / "config.json").read_text())
    assert (config["num_vq_embeddings"], config["sample_size"]) == (512, 64)


def test_codes_have_the_contract_shape(codec, values):
    codes = encode(codec, values)
    assert codes.shape == (len(values), 64) and codes.dtype == torch.int64
    assert 0 <= codes.min() and codes.max() < 512
    assert decode(codec, codes).shape == values.shape


def test_the_judge_reads_the_scene_after_the_round_trip(codec, values):
    made = decode(codec, encode(codec, values))
    for caption, picture in zip(CAPTIONS, made):
        assert pictures.matches(to_picture(picture), language.parse_scene(caption)), caption


def test_most_held_out_scenes_survive_the_round_trip(codec):
    rng = random.Random(3)
    scenes = [
        language.parse_scene(language.sample(kind, rng, held_out=True))
        for kind in ("single", "pair", "row")
        for _ in range(10)
    ]
    stack = np.stack([np.asarray(pictures.draw(scene, rng)) for scene in scenes])
    made = decode(codec, encode(codec, torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1))
    read = sum(pictures.matches(to_picture(picture), scene) for scene, picture in zip(scenes, made))
    assert read >= 25, f"{read} of 30"


def test_paper_is_mostly_one_code(codec, values):
    codes = encode(codec, values)
    assert (codes == 0).float().mean() > 0.3


def test_a_batch_gives_what_each_picture_gives_alone(codec, values):
    together = encode(codec, values)
    alone = torch.cat([encode(codec, value[None]) for value in values])
    assert (together == alone).all()
    made = torch.cat([decode(codec, codes[None]) for codes in together])
    torch.testing.assert_close(decode(codec, together), made, atol=1e-4, rtol=0)


def test_pictures_differ_in_codes_and_the_codebook_is_in_use(codec, values):
    codes = encode(codec, values)
    assert len({tuple(row.tolist()) for row in codes}) == len(codes)
    assert len(codes.unique()) > 64, "a collapsed codebook gives a handful of codes"
