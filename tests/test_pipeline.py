"""transformers' any-to-any pipeline with the model and the processor, in every mode."""

import numpy as np
import pytest
import torch
from PIL import Image
from processing_tools import make_processor, tone
from transformers import AutoConfig, pipeline
from transformers.utils import is_torchvision_available

from modeling_anygpt import AnyGPTConfig, AnyGPTForCausalLM, ModalitySpec, check_compatible


@pytest.fixture(scope="module")
def pipe():
    """Random weights over the processor with codecs that are exact inverses."""
    processor = make_processor()
    text_config = AutoConfig.for_model(
        "llama",
        vocab_size=len(processor.tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
    )
    rows = [ModalitySpec.from_dict(row) for row in processor.modalities]
    config = AnyGPTConfig(text_config=text_config, modalities=rows)
    config.assign_token_ids(processor.tokenizer)
    check_compatible(config, processor.tokenizer)
    torch.manual_seed(0)
    model = AnyGPTForCausalLM(config).eval()
    model.generation_config.max_new_tokens = 30
    return pipeline("any-to-any", model=model, processor=processor)


def chat(*blocks):
    return [{"role": "user", "content": [{"type": "text", "text": "draw <eoh> a circle"}, *blocks]}]


def test_text_mode(pipe):
    message = chat({"type": "speech", "audio": tone(0.2, 1600), "sampling_rate": 1600})
    only_text = {"output_modalities": ("text",)}
    result = pipe(text=message, generate_kwargs=only_text, return_full_text=False)
    assert isinstance(result[0]["generated_text"], str)
    full = pipe(text=message, generate_kwargs=only_text)[0]["generated_text"]
    assert full[0]["role"] == "user" and full[-1]["role"] == "assistant"
    assert pipe(text="a circle", generate_kwargs=only_text)[0]["generated_text"].startswith("a circle")


def test_image_mode(pipe):
    picture = pipe(text=chat(), generation_mode="image")[0]["generated_image"]
    assert isinstance(picture, Image.Image) and picture.size == (8, 8)


@pytest.mark.parametrize(("name", "rate"), [("speech", 50), ("music", 25)])
def test_audio_mode(pipe, name, rate):
    sound = pipe(text=chat(), generation_mode="audio", generate_kwargs={"output_modalities": (name,)})
    sound = sound[0]["generated_audio"]
    assert isinstance(sound, np.ndarray) and sound.ndim == 1 and len(sound) and len(sound) % (1600 // rate) == 0
    assert np.isfinite(sound).all() and np.abs(sound).max() <= 1


def test_several_chats_at_once(pipe):
    results = pipe(text=[chat(), chat({"type": "text", "text": "and a square"})], generation_mode="image")
    assert len(results) == 2 and all(isinstance(r[0]["generated_image"], Image.Image) for r in results)


def test_pictures_and_text_to_text(pipe):
    """Pictures themselves need torchvision, as in every pipeline."""
    talk = pipeline("image-text-to-text", model=pipe.model, processor=pipe.processor)
    result = talk(text=chat(), generate_kwargs={"output_modalities": ("text",)}, return_full_text=False)
    assert isinstance(result[0]["generated_text"], str)


def test_modes_it_does_not_know(pipe):
    with pytest.raises(ValueError, match="generation_mode"):
        pipe(text=chat(), generation_mode="video")


def test_image_input(pipe):
    """The pipeline itself demands torchvision for image input: the class claims it only where that is installed."""
    assert ("image" in pipe.model.input_modalities) == is_torchvision_available()
    picture = {"type": "image", "image": Image.new("RGB", (8, 8), "white")}
    result = pipe(text=chat(picture), generate_kwargs={"output_modalities": ("text",)}, return_full_text=False)
    assert isinstance(result[0]["generated_text"], str)


def test_the_embedded_checkpoint(model, processor):
    """Picture, speech, music and text out of the trained model."""
    check_compatible(model.config, processor.tokenizer)
    pipe = pipeline("any-to-any", model=model, processor=processor)
    message = [{"role": "user", "content": [{"type": "text", "text": "a big red circle"}]}]
    options = {"generate_kwargs": {"max_new_tokens": 80}}
    image = model.config.modality("image")
    picture = pipe(text=message, generation_mode="image", **options)[0]["generated_image"]
    assert picture.size == (image.image_size, image.image_size)
    for name in ("speech", "music"):
        spec = model.config.modality(name)
        options = {"generate_kwargs": {"max_new_tokens": 80, "output_modalities": (name,)}}
        sound = pipe(text=message, generation_mode="audio", **options)[0]["generated_audio"]
        assert 0 < len(sound) <= 80 / spec.tokens_per_second * spec.sampling_rate and np.isfinite(sound).all()
