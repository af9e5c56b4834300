"""SEED-2 against the outputs of the official code, the loader of the official files, its place in the processor."""

import numpy as np
import pytest
import torch
from goldens_io import GOLDENS, read_json
from PIL import Image
from processing_tools import byte_tokenizer
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from modeling_anygpt import ModalitySpec
from modeling_anygpt.codecs import Seed2TokenizerConfig, Seed2TokenizerModel
from modeling_anygpt.conversion.seed2 import is_unused, load_official, official_tensors
from processing_anygpt import AnyGPTProcessor, add_modality_tokens

QUANTIZER, VIT = GOLDENS / "seed2" / "seed_quantizer.pt", GOLDENS / "seed2" / "eva_vit_g.pth"
STRANGER = "unknown_extra.weight"  # put into the goldens' file to be unexpected


def small_config() -> Seed2TokenizerConfig:
    """Of the goldens' small model, from the settings of the official classes."""
    official = read_json("seed2", "config.json")
    vit, qformer = official["vit"], official["qformer"]
    return Seed2TokenizerConfig(
        vision_config=dict(
            hidden_size=vit["embed_dim"],
            intermediate_size=int(vit["embed_dim"] * vit["mlp_ratio"]),
            num_hidden_layers=vit["depth"],
            num_attention_heads=vit["num_heads"],
        ),
        qformer_config=dict(
            hidden_size=qformer["hidden_size"],
            intermediate_size=qformer["intermediate_size"],
            num_hidden_layers=qformer["num_hidden_layers"],
            num_attention_heads=qformer["num_attention_heads"],
        ),
        codebook_size=official["n_embed"],
        decoder_layers=official["decode_depth"],
    )


def load(quantizer=QUANTIZER, vit=VIT) -> Seed2TokenizerModel:
    with pytest.warns(UserWarning, match=f"and 1 tensors nobody named to us. They are left out: {STRANGER}.$"):
        return load_official(quantizer, vit, small_config())


@pytest.fixture(scope="module")
def goldens():
    return load_file(GOLDENS / "seed2" / "io.safetensors")


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(scope="module")
def pictures(goldens):  # [B, 3, S, S] in [-1, 1]
    return goldens["image_uint8"].float() / 127.5 - 1


def test_codes_equal_official(model, goldens, pictures):
    codes = model.encode(pictures)
    assert codes.dtype == torch.int64 and torch.equal(codes[:, 0], goldens["indices"].long())
    assert torch.equal(model.encode(pictures[1:]), codes[1:])  # a batch changes nothing


def test_embeddings_equal_official(model, goldens):
    for codes, embeddings in (("indices", "image_embed"), ("rand_indices", "rand_image_embed")):
        actual = model.decode(goldens[codes].long()[:, None])
        torch.testing.assert_close(actual, goldens[embeddings], atol=1e-4, rtol=0)


@torch.no_grad()
def test_every_stage_equals_official(model, goldens, pictures):
    """Of the ViT's 257 positions the goldens keep the first 40."""
    vit = model.vision_model
    stages = {"vit_patch_embed": vit.embeddings.patch_embedding, "ln_vision_out": vit.post_layernorm}
    stages |= {f"vit_block{i}": layer for i, layer in enumerate(vit.encoder.layers)}
    stages |= {"qformer_embeddings": model.qformer.layernorm, "encode_task_out": model.to_code}
    stages |= {f"qformer_layer{i}": layer for i, layer in enumerate(model.qformer.encoder.layer)}
    stages |= {"quant": model.codebook, "decode_task_out": model.from_code, "image_down_out": model.reduce}
    stages |= {f"decode_block{i}": layer for i, layer in enumerate(model.decoder)}
    outputs = {}

    def keep(name):
        # The first call: the ViT's norm runs once more for a pooled output that nobody uses.
        return lambda module, inputs, output: outputs.setdefault(name, output)

    hooks = [module.register_forward_hook(keep(name)) for name, module in stages.items()]
    model(pictures)
    for hook in hooks:
        hook.remove()
    outputs["vit_patch_embed"] = outputs["vit_patch_embed"].flatten(2).mT
    outputs["query_output_up"] = outputs["decode_task_out"]
    assert outputs.keys() == goldens.keys() - {
        "image_uint8",
        "indices",
        "image_embed",
        "rand_indices",
        "rand_image_embed",
    }
    for name, output in outputs.items():
        expected = goldens[name]
        torch.testing.assert_close(output[:, : expected.shape[1]], expected, atol=1e-4, rtol=0, msg=name)


def test_full_configuration_takes_every_official_tensor():
    full = read_json("seed2", "full.json")
    config = Seed2TokenizerConfig()
    targets = official_tensors(config)
    assert {name: list(target.shape) for name, target in targets.items()}.items() <= full["shapes"].items()
    left = full["shapes"].keys() - targets.keys()
    assert left == {*full["unused"], "Qformer.bert.embeddings.position_ids"}  # a buffer of 0, 1, 2, ...
    assert all(is_unused(name, config) for name in left)
    with torch.device("meta"):
        own = Seed2TokenizerModel(config)
    assert {target.name for target in targets.values()} == own.state_dict().keys()
    # All official parameters but the unused ones, and the bias of the keys, which is zero.
    unused = sum(np.prod(full["shapes"][name]) for name in full["unused"])
    assert own.num_parameters() == full["parameters"] - unused + 39 * 1408


def test_precision_of_the_files_does_not_matter(model, tmp_path):
    weights = torch.load(QUANTIZER, weights_only=True)
    assert weights["query_tokens"].dtype == torch.float16
    torch.save({name: tensor.float() for name, tensor in weights.items()}, tmp_path / "float32.pt")
    same = load(tmp_path / "float32.pt").state_dict()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, same[name]), name
    bias = model.vision_model.encoder.layers[0].self_attn.qkv.bias.unflatten(0, (3, -1))
    assert bias[0].any() and not bias[1].any() and bias[2].any()


def changed(tmp_path, change):
    weights = torch.load(QUANTIZER, weights_only=True)
    change(weights)
    torch.save(weights, tmp_path / "changed.pt")
    return tmp_path / "changed.pt"


def test_unused_tensors_are_left_out_by_name(tmp_path, model, goldens):
    def add(weights):
        for name in ("Qformer.cls.predictions.bias", "Qformer.bert.encoder.layer.3.output.dense.weight", "temp"):
            weights[name] = torch.ones(2)

    same = load(changed(tmp_path, add))
    codes = goldens["rand_indices"].long()[:, None]
    assert torch.equal(same.decode(codes), model.decode(codes))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("query_tokens"), r"of 171 tensors 1 missing \(query_tokens\)"),
        (
            lambda w: w.update(pos_embed_image=torch.ones(1, 8, 48)),
            r"pos_embed_image is \[1, 8, 48\], expected \[1, 32",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*nobody named to us")
def test_wrong_tensors_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_official(changed(tmp_path, change), VIT, small_config())


def test_swapped_files_are_refused():
    with pytest.raises(ValueError, match="missing .*unknown"):
        load_official(VIT, QUANTIZER, small_config())


def test_saved_model_loads_with_auto_classes(model, pictures, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, Seed2TokenizerModel) and not loaded.training
    assert torch.equal(loaded.encode(pictures), model.encode(pictures))
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.image_size, config.num_query_tokens, config.codebook_size) == (224, 32, 256)
    assert tuple(config.image_mean) == (0.48145466, 0.4578275, 0.40821073)  # CLIP's
    assert config.qformer_config.encoder_hidden_size == config.vision_config.hidden_size == 64


def test_processor_reads_pictures_for_it(model, goldens):
    spec = ModalitySpec(
        "image", "<i{}>", "<soim>", "<eoim>", 256, codes_per_item=32, image_size=224, codec="image_codec"
    )
    tokenizer = byte_tokenizer()
    add_modality_tokens(tokenizer, [spec])
    processor = AnyGPTProcessor(tokenizer, [spec])
    processor.set_codec("image", model)
    pixels = goldens["image_uint8"].permute(0, 2, 3, 1).numpy()
    codes = processor.encode_media("image", [Image.fromarray(picture) for picture in pixels])
    assert np.array_equal(np.concatenate(codes), goldens["indices"].numpy())
    # Another size is stretched to a square, bicubic, not cropped.
    wide = Image.fromarray(pixels[0]).resize((500, 300))
    stretched = wide.resize((224, 224), Image.Resampling.BICUBIC)
    assert np.array_equal(*processor.encode_media("image", [wide, stretched]))
    with pytest.raises(ValueError, match="gives embeddings, not pictures. Name an unCLIP pipeline"):
        processor.decode_codes("image", codes)


@pytest.mark.parametrize(
    "values, message",
    [
        (torch.zeros(1, 3, 64, 64), r"Got pictures of shape \[1, 3, 64, 64\], allowed \[B, 3, 224, 224\]"),
        (torch.zeros(3, 224, 224), r"Got pictures of shape \[3, 224, 224\]"),
        (torch.zeros(1, 3, 224, 224, dtype=torch.uint8), "Got torch.uint8 pictures, allowed floats"),
    ],
)
def test_bad_pictures_are_refused(model, values, message):
    with pytest.raises(ValueError, match=message):
        model.encode(values)


@pytest.mark.parametrize(
    "codes, message",
    [
        (torch.zeros(1, 32, dtype=torch.long), r"Got codes of shape \[1, 32\], allowed \[B, 1, 32\]"),
        (torch.zeros(1, 1, 31, dtype=torch.long), r"Got codes of shape \[1, 1, 31\]"),
        (torch.zeros(1, 1, 32), "Got torch.float32 codes"),
        (torch.full((1, 1, 32), 256), "Got codes from 256 to 256, allowed 0 to 255"),
    ],
)
def test_bad_codes_are_refused(model, codes, message):
    with pytest.raises(ValueError, match=message):
        model.decode(codes)
