"""Pictures painted from SEED-2 codes by an unCLIP pipeline: tiny, random, from the codes to PIL."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from processing_tools import byte_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from modeling_anygpt import ModalitySpec
from modeling_anygpt.codecs import Seed2TokenizerConfig, Seed2TokenizerModel
from modeling_anygpt.codecs.unclip import UnclipDecoder, check_folder
from processing_anygpt import AnyGPTProcessor, ImagePart, add_modality_tokens, codec_io

WIDTH = 16  # of the embeddings
CODES = np.arange(8)[None]  # [1, T]
OTHER = CODES[:, ::-1].copy() + 5


def tiny_codec() -> Seed2TokenizerModel:
    config = Seed2TokenizerConfig(
        vision_config=dict(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28
        ),
        qformer_config=dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2),
        num_query_tokens=8,
        codebook_size=16,
        code_dimension=4,
        decoder_layers=1,
        decoder_heads=2,
        embedding_size=WIDTH,
    )
    codec = Seed2TokenizerModel(config).eval()
    with torch.no_grad():
        codec.codebook.weight.normal_()
        for layer in (codec.from_code, codec.reduce, codec.to_embedding):  # new ones make nearly equal embeddings
            for module in layer.modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight.normal_(std=2 * module.in_features**-0.5)
    return codec


def tiny_pipeline(width: int = WIDTH) -> UnclipDecoder:
    """Stable Diffusion 2.1 unCLIP in small: pictures of 8 px from latents of 8."""
    tokenizer = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}, merges=[])
    tokenizer.model_max_length = 8
    text = CLIPTextConfig(
        vocab_size=3,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        attention_head_dim=4,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * width,
        cross_attention_dim=8,
        layers_per_block=1,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        latent_channels=4,
        norm_num_groups=4,
    )
    return UnclipDecoder(
        feature_extractor=None,
        image_encoder=None,
        image_normalizer=StableUnCLIPImageNormalizer(width),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(text).eval(),
        unet=unet.eval(),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", prediction_type="v_prediction", set_alpha_to_one=False, steps_offset=1
        ),
        vae=vae.eval(),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved pipeline in the layout of the hub, with an image encoder that must not be read."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline().save_pretrained(path)
    index = (path / "model_index.json").read_text()
    index = index.replace('"UnclipDecoder"', '"StableUnCLIPImg2ImgPipeline"')
    empty, encoder = "[\n    null,\n    null\n  ]", '["transformers", "CLIPVisionModelWithProjection"]'
    assert index.count(empty) == 2  # feature_extractor, image_encoder
    index = index.replace(empty, '["transformers", "CLIPImageProcessor"]', 1).replace(empty, encoder)
    (path / "model_index.json").write_text(index)
    (path / "image_encoder").mkdir()
    (path / "image_encoder" / "model.safetensors").write_bytes(b"no weights")
    return path


@pytest.fixture(scope="module")
def decoder(folder):
    return UnclipDecoder.load(folder)


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return tiny_codec()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def paint(decoder, codec, *items, seed=1, steps=2, **options):
    return codec_io.paint(decoder, codec, items, steps=steps, generator=seeded(seed), **options)


def differ(a, b) -> bool:
    return np.abs(a - b).max() > 0.05


def test_pictures_follow_codes_and_seed(decoder, codec):
    (picture,) = paint(decoder, codec, CODES)
    assert picture.shape == (3, 8, 8) and picture.dtype == np.float32 and -1 <= picture.min() < picture.max() <= 1
    np.testing.assert_array_equal(paint(decoder, codec, CODES)[0], picture)
    assert differ(paint(decoder, codec, CODES, seed=2)[0], picture)
    assert differ(paint(decoder, codec, OTHER)[0], picture)


def test_settings_matter(decoder, codec):
    (picture,) = paint(decoder, codec, CODES)
    for options in ({"negative": OTHER}, {"guidance": 1}, {"guidance": 3.0}, {"steps": 3}):
        assert differ(paint(decoder, codec, CODES, **options)[0], picture), options


def test_a_picture_is_the_same_in_a_batch(decoder, codec, monkeypatch):
    monkeypatch.setattr(codec_io, "MAX_PAINTED", 2)
    items, generator = [CODES, OTHER, CODES + 3], seeded(1)
    together = paint(decoder, codec, *items, negative=CODES + 1)
    for item, picture in zip(items, together, strict=True):
        alone = codec_io.paint(decoder, codec, [item], CODES + 1, steps=2, generator=generator)[0]
        np.testing.assert_allclose(alone, picture, atol=1e-4)


def test_numbers_are_those_of_the_stock_pipeline(folder, decoder):
    """With an image encoder that it never calls, as the official program runs it."""
    from diffusers import StableUnCLIPImg2ImgPipeline
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1, image_size=32)
    )
    stock = StableUnCLIPImg2ImgPipeline.from_pretrained(folder, feature_extractor=None, image_encoder=encoder)
    stock.set_progress_bar_config(disable=True)
    embeddings = torch.randn(1, WIDTH, generator=seeded(0))
    for guidance in (10.0, 1.0):
        made = stock(
            image_embeds=embeddings,
            guidance_scale=guidance,
            num_inference_steps=20,
            generator=seeded(3),
            output_type="pt",
        )
        ours = decoder.decode(embeddings, guidance=guidance, generators=[seeded(3)])
        torch.testing.assert_close(ours, made.images * 2 - 1, atol=1e-5, rtol=0)


def test_what_is_not_used_is_not_loaded(decoder):
    assert decoder.image_encoder is None and decoder.feature_extractor is None
    assert decoder.unet.dtype == torch.float32 and decoder.device == torch.device("cpu")


@pytest.fixture
def saved(tmp_path, codec, folder):
    """A processor's folder with the codec and the pipeline as subfolders."""
    spec = ModalitySpec(
        *("image", "<i{}>", "<soim>", "<eoim>", 16),
        codes_per_item=8,
        image_size=28,
        codec="image_codec",
        decoder="unclip",
    )
    tokenizer = byte_tokenizer()
    add_modality_tokens(tokenizer, [spec])
    processor = AnyGPTProcessor(tokenizer, [spec])
    processor.set_codec("image", codec, UnclipDecoder.load(folder))
    processor.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_processor_paints_replies(saved, folder, codec):
    processor = AnyGPTProcessor.from_pretrained(saved)
    spec = processor.specs[0]
    reply = [spec.start_token_id, *(spec.first_code_id + CODES[0]), spec.end_token_id]
    (part,) = processor.parse_output([*reply], voice="nobody.wav", steps=4, generator=seeded(1))  # of speech
    assert isinstance(part, ImagePart) and part.image.mode == "RGB" and part.image.size == (8, 8)
    np.testing.assert_array_equal(part.codes, CODES)
    (same,) = codec_io.paint(UnclipDecoder.load(folder), codec, [CODES], generator=seeded(1))
    pixels = np.asarray(part.image, np.float32).transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(pixels, same, atol=1 / 127)
    avoiding = processor.decode_codes("image", [CODES], steps=2, guidance=5, negative_codes=OTHER, generator=seeded(1))
    assert avoiding[0].image != part.image
    assert len(processor.encode_media("image", [part.image])[0][0]) == 8


def test_pipelines_are_copied_without_being_loaded(saved, tmp_path):
    processor = AnyGPTProcessor.from_pretrained(saved)
    processor.save_pretrained(tmp_path / "again")
    assert "unclip" not in processor.shelf.models
    for path in (saved / "unclip").rglob("*"):
        assert (tmp_path / "again" / "unclip" / path.relative_to(saved / "unclip")).exists()


@pytest.mark.slow  # imports diffusers once more
def test_remote_code_needs_no_package(saved, tmp_path):
    script = """
import importlib.util, sys, torch
assert importlib.util.find_spec("processing_anygpt") is None and importlib.util.find_spec("modeling_anygpt") is None
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
part = processor.decode_codes("image", [list(range(8))], steps=2, generator=torch.Generator().manual_seed(1))[0]
part.save("picture.png")
"""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if "site-packages" in path),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-S", "-c", script, str(saved)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    here = AnyGPTProcessor.from_pretrained(saved).decode_codes("image", [CODES], steps=2, generator=seeded(1))[0]
    here.save(tmp_path / "here.png")
    assert (tmp_path / "picture.png").read_bytes() == (tmp_path / "here.png").read_bytes()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "Got steps=0 and guidance=10.0, allowed are 1 and more"),
        ({"guidance": 0.5}, "guidance=0.5, allowed are 1 and more"),
        ({"guidance": 1, "negative": OTHER}, "Got negative codes with guidance=1, which ignores them"),
    ],
)
def test_impossible_settings_are_refused(decoder, codec, options, message):
    with pytest.raises(ValueError, match=message):
        paint(decoder, codec, CODES, **options)


def test_embeddings_of_another_clip_are_refused(codec):
    with pytest.raises(ValueError, match=r"Got embeddings of shape \[1, 16\], this pipeline takes \[1, 12\]"):
        paint(tiny_pipeline(12), codec, CODES)


def test_settings_of_pictures_are_refused_for_others(saved):
    processor = AnyGPTProcessor.from_pretrained(saved)
    with pytest.raises(ValueError, match="image has no decoder that takes a voice"):
        processor.decode_codes("image", [CODES], voice=(np.zeros(100), 1600))
    processor.specs[0].decoder = None
    with pytest.raises(ValueError, match="image has no decoder that takes guidance or negative codes"):
        processor.decode_codes("image", [CODES], guidance=3)


@pytest.mark.parametrize(
    "index, message",
    [
        (None, "has no model_index.json"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"_class_name": "FluxPipeline"}', "is a FluxPipeline, need a StableUnCLIPImg2ImgPipeline"),
    ],
)
def test_other_folders_are_refused(tmp_path, index, message):
    if index is not None:
        (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(ValueError, match=message):
        check_folder(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_float16_on_a_gpu(folder, codec):
    decoder = UnclipDecoder.load(folder, "cuda")
    assert decoder.unet.dtype == decoder.vae.dtype == decoder.text_encoder.dtype == torch.float16
    (picture,) = paint(decoder, codec, CODES)
    assert np.isfinite(picture).all() and picture.std() > 0.01
    assert decoder.to("cpu").unet.dtype == torch.float32
