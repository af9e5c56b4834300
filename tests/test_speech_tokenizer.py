"""SpeechTokenizer against the outputs of the official code, and its public interface."""

import os
import subprocess
import sys

import pytest
import torch
from goldens_io import GOLDENS, load_goldens, read_json
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

from modeling_anygpt.codecs import SpeechTokenizerConfig, SpeechTokenizerModel
from modeling_anygpt.conversion.speech_tokenizer import load_official

CONFIG_JSON = GOLDENS / "speechtokenizer" / "config.json"
ATOL = 1e-4


@pytest.fixture(scope="module")
def goldens():
    return load_goldens("speechtokenizer")[0]


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A file in the official layout, the buffers of codebook training included."""
    weights = load_goldens("speechtokenizer")[1]
    for key in [key for key in weights if key.endswith("_codebook.embed")]:
        weights[key.replace("embed", "embed_avg")] = weights[key].clone()
        weights[key.replace("embed", "cluster_size")] = torch.ones(64)
        weights[key.replace("embed", "inited")] = torch.ones(1)
    path = tmp_path_factory.mktemp("official") / "SpeechTokenizer.pt"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def codec(official):
    return load_official(CONFIG_JSON, official)


def close(actual, expected, stride=1):
    torch.testing.assert_close(actual[..., ::stride], expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize(
    "name, wav, levels",
    [
        ("codes", "wav", {}),
        ("codes_short", "wav_short", {}),
        ("codes_nq3", "wav", {"n_q": 3}),
        ("codes_st1", "wav", {"st": 1}),
        ("codes_st2_nq5", "wav", {"n_q": 5, "st": 2}),
    ],
)
def test_encode_equals_official(codec, goldens, name, wav, levels):
    codes = codec.encode(goldens[wav][:, 0], **levels)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, goldens[name].transpose(0, 1))


@pytest.mark.parametrize(
    "name, codes, rows, st",
    [
        ("decode_all", "codes", slice(None), 0),
        ("decode_short", "codes_short", slice(None), 0),
        ("decode_semantic", "codes", slice(0, 1), 0),
        ("decode_acoustic_st1", "codes", slice(1, None), 1),
        ("decode_st2", "codes", slice(2, 5), 2),
    ],
)
def test_decode_equals_official(codec, goldens, name, codes, rows, st):
    values = codec.decode(goldens[codes].transpose(0, 1)[:, rows], st=st)
    assert values.dtype == torch.float32 and values.shape[1] == goldens[codes].shape[-1] * codec.config.hop_length
    close(values[:, None], goldens[name], stride=5)


def test_forward_equals_official(codec, goldens):
    with torch.no_grad():
        close(codec.encoder(goldens["wav"]), goldens["encoder_out"])
        output = codec(goldens["wav"][:, 0])
        vectors = codec.quantizer.lookup(output.codes, 0)
    close(output.semantic_features, goldens["forward_feature"])
    close(output.audio_values[:, None], goldens["decode_all"], stride=5)
    close(vectors, goldens["forward_feature_all"], stride=10)
    close(vectors[0], goldens["forward_feature_layer0"])
    close(vectors.sum(0), goldens["quantized_all"])


@pytest.mark.parametrize("net, prefix", [("encoder", "enc"), ("decoder", "dec")])
def test_every_layer_equals_official(codec, goldens, net, prefix):
    x = goldens[f"{prefix}_act_in"]
    with torch.no_grad():
        for i, layer in enumerate(getattr(codec, net).model):
            x = layer(x)
            close(x, goldens[f"{prefix}_act.{i}"], stride=8 if x.shape[-1] >= 100 else 1)


def test_full_configuration_has_the_official_tensors():
    full = read_json("speechtokenizer", "full.json")
    with torch.device("meta"):
        model = SpeechTokenizerModel(SpeechTokenizerConfig())
    ours = {key: list(value.shape) for key, value in model.state_dict().items()}
    training = ("inited", "cluster_size", "embed_avg")
    assert ours == {key: shape for key, shape in full["shapes"].items() if not key.endswith(training)}
    assert sum(p.numel() for p in model.parameters()) == full["n_params"]


def test_incomplete_official_file_is_refused(official, tmp_path):
    weights = torch.load(official, weights_only=True)
    del weights["encoder.model.0.conv.conv.weight_g"]
    torch.save(weights, tmp_path / "broken.pt")
    with pytest.raises(ValueError, match=r"1 missing \(encoder.model.0.conv.conv.weight_g\)\.$"):
        load_official(CONFIG_JSON, tmp_path / "broken.pt")


def test_half_precision_official_file(official, tmp_path, codec, goldens):
    weights = {key: value.half() for key, value in torch.load(official, weights_only=True).items()}
    torch.save(weights, tmp_path / "half.pt")
    half = load_official(CONFIG_JSON, tmp_path / "half.pt")
    assert half.dtype == torch.float32
    codes = goldens["codes"].transpose(0, 1)
    torch.testing.assert_close(half.decode(codes), codec.decode(codes), atol=0.02, rtol=0)


def test_saved_model_loads_with_auto_classes(codec, goldens, tmp_path):
    codec.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, SpeechTokenizerModel) and not loaded.training
    assert loaded.state_dict().keys() == codec.state_dict().keys()
    assert torch.equal(loaded.encode(goldens["wav"][:, 0]), codec.encode(goldens["wav"][:, 0]))
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.sampling_rate, config.frame_rate, config.num_codebooks, config.codebook_size) == (16000, 50, 8, 64)


def test_remote_code_needs_no_package(codec, goldens, tmp_path, monkeypatch):
    """The exported module runs in a process that can't import this project."""
    monkeypatch.setattr(SpeechTokenizerConfig, "_auto_class", "AutoConfig")  # what register_for_auto_class sets
    monkeypatch.setattr(SpeechTokenizerModel, "_auto_class", "AutoModel")
    codec.save_pretrained(tmp_path)
    assert (tmp_path / "speech_tokenizer.py").exists()
    save_file({"wav": goldens["wav"][:, 0].contiguous()}, tmp_path / "wav.safetensors")
    script = """
import sys
from safetensors.torch import load_file
from transformers import AutoModel
codec = AutoModel.from_pretrained(".", trust_remote_code=True)
assert "modeling_anygpt" not in sys.modules
print(codec.encode(load_file("wav.safetensors")["wav"]).sum().item())
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == goldens["codes"].sum()


def test_embedded_codec_follows_the_contract():
    folder = GOLDENS.parents[1] / "modeling_anygpt" / "pretrained" / "anygpt_tiny" / "speech_codec"
    codec = AutoModel.from_pretrained(folder)
    assert codec.dtype == torch.float32
    assert (codec.config.sampling_rate, codec.config.frame_rate) == (16000, 50)
    time = torch.arange(16000) / 16000
    values = 0.3 * torch.sin(2 * torch.pi * 200 * time) * torch.sin(2 * torch.pi * 3 * time)
    batch = torch.stack((values, values.flip(0)))
    codes = codec.encode(batch)
    assert codes.shape == (2, 8, 50) and 0 <= codes.min() and codes.max() < codec.config.codebook_size
    assert torch.equal(codec.encode(values[None]), codes[:1])  # a batch changes nothing
    decoded = codec.decode(codes)
    assert decoded.shape == (2, 16000)
    # The energy comes back: three bursts a second, silence between.
    energy = torch.stack([x.view(50, 320).square().mean(1).sqrt() for x in (batch[0], decoded[0])])
    assert torch.corrcoef(energy)[0, 1] > 0.7


@pytest.mark.parametrize(
    "values, message",
    [
        (torch.zeros(1, 0), r"Got audio of shape \[1, 0\], allowed \[B, T\]"),
        (torch.zeros(2, 1, 320), r"Got audio of shape \[2, 1, 320\]"),
        (torch.zeros(1, 320, dtype=torch.int16), "Got torch.int16 audio, allowed floats"),
        (torch.full((1, 320), torch.nan), "Got NaN or infinite"),
        (torch.full((1, 320), torch.inf), "Got NaN or infinite"),
    ],
)
def test_bad_audio_is_refused(codec, values, message):
    with pytest.raises(ValueError, match=message):
        codec.encode(values)


@pytest.mark.parametrize(
    "codes, message",
    [
        (torch.zeros(1, 8, 0, dtype=torch.long), r"Got codes of shape \[1, 8, 0\]"),
        (torch.zeros(8, 5, dtype=torch.long), r"Got codes of shape \[8, 5\], allowed \[B, K, T\]"),
        (torch.zeros(1, 8, 5), "Got torch.float32 codes"),
        (torch.zeros(1, 9, 5, dtype=torch.long), "n_q=9, allowed"),
        (torch.full((1, 8, 5), 64), "Got codes from 64 to 64, allowed 0 to 63"),
        (torch.full((1, 8, 5), -1), "Got codes from -1 to -1, allowed 0 to 63"),
    ],
)
def test_bad_codes_are_refused(codec, codes, message):
    with pytest.raises(ValueError, match=message):
        codec.decode(codes)


@pytest.mark.parametrize("levels", [{"n_q": 0}, {"n_q": 9}, {"st": 8}, {"n_q": 2, "st": 2}, {"st": -1}])
def test_bad_levels_are_refused(codec, levels):
    with pytest.raises(ValueError, match="allowed 0 <= st < n_q <= 8"):
        codec.encode(torch.zeros(1, 320), **levels)


def test_new_model_encodes_and_trains():
    """Without a checkpoint: finite weights, and gradients reach every parameter through the decoder."""
    config = SpeechTokenizerConfig(n_filters=4, dimension=16, semantic_dimension=8, codebook_size=16, num_codebooks=2)
    model = SpeechTokenizerModel(config)
    hidden = model.encoder(torch.randn(1, 1, 640))
    (model.decoder(hidden).square().mean() + model.transform(hidden.mT).square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert model.encode(torch.randn(1, 640)).shape == (1, 2, 2)
