"""Codecs in one dialect: lengths, pieces, library models."""

from pathlib import Path

import numpy as np
import pytest
import torch
from processing_tools import EchoDecoder, ExactAudioCodec, tone
from transformers import EncodecConfig, EncodecModel

import modeling_anygpt
from processing_anygpt import codec_io

SPEECH_CODEC = Path(modeling_anygpt.__file__).parent / "pretrained" / "anygpt_tiny" / "speech_codec"


@pytest.fixture(scope="module")
def speech_codec():
    return modeling_anygpt.codecs.SpeechTokenizerModel.from_pretrained(SPEECH_CODEC).eval()


def babble(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise in syllables: every frame differs."""
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=round(seconds * 16000)) * (1 + np.sin(np.arange(round(seconds * 16000)) / 700))
    return np.clip(samples * 0.1, -1, 1).astype(np.float32)


@pytest.fixture(scope="module")
def encodec():
    torch.manual_seed(0)
    config = EncodecConfig(
        target_bandwidths=[0.4, 0.8],  # 2 and 4 codebooks
        sampling_rate=1600,
        audio_channels=1,
        normalize=False,
        chunk_length_s=None,
        hidden_size=16,
        codebook_dim=16,
        codebook_size=16,
        num_filters=4,
        upsampling_ratios=[4, 4, 2],
        use_causal_conv=False,
    )
    model = EncodecModel(config).eval()
    with torch.no_grad():
        for layer in model.quantizer.layers:
            layer.codebook.embed.normal_()
    return model


def test_unequal_lengths_get_the_codes_each_gets_alone(speech_codec):
    sounds = [babble(0.3), babble(0.21, 1), babble(0.3, 2), babble(0.02, 3)]
    together = codec_io.encode(speech_codec, sounds)
    for sound, codes in zip(sounds, together, strict=True):
        alone = speech_codec.encode(torch.from_numpy(sound)[None])[0].numpy()
        np.testing.assert_array_equal(codes, alone)
        assert codes.shape == (8, -(-len(sound) // 320)) and codes.dtype == np.int64
    for codes, values in zip(together, codec_io.decode(speech_codec, together), strict=True):
        alone = speech_codec.decode(torch.from_numpy(codes)[None])[0].numpy()
        np.testing.assert_allclose(values, alone, atol=1e-5)


def test_equal_lengths_go_together_and_others_are_not_padded():
    codec = ExactAudioCodec(1, 50)
    codec_io.encode(codec, [np.zeros(n, np.float32) for n in (64, 96, 64, 64)])
    assert sorted(codec.batches) == [(1, 96), (3, 64)]
    codec.batches.clear()
    codec_io.encode(codec, [np.zeros(64, np.float32)] * 70)
    assert [batch for batch, _ in codec.batches] == [32, 32, 6]


def test_less_than_a_frame_is_a_frame():
    codes = codec_io.encode(ExactAudioCodec(1, 50), [np.full(1, 0.5, np.float32)])
    assert codes[0].shape == (1, 1)


def test_long_sound_goes_in_pieces(speech_codec, monkeypatch):
    """Bounded input, the same number of frames, and nearly the codes of one go (the far context is not heard)."""
    monkeypatch.setattr(codec_io, "CHUNK_SECONDS", 1.0)
    monkeypatch.setattr(codec_io, "CONTEXT_SECONDS", 0.5)
    sound = babble(3.01)
    whole = speech_codec.encode(torch.from_numpy(sound)[None])[0].numpy()
    lengths = []
    encode_batch = codec_io._encode_batch
    monkeypatch.setattr(
        codec_io, "_encode_batch", lambda codec, values: lengths.append(values.shape[1]) or encode_batch(codec, values)
    )
    pieces = codec_io.encode(speech_codec, [sound])[0]
    assert len(lengths) == 4 and max(lengths) <= 2 * 16000
    assert pieces.shape == whole.shape
    assert (pieces[0] == whole[0]).mean() > 0.95
    decoded = codec_io.decode(speech_codec, [whole])[0]
    whole_sound = speech_codec.decode(torch.from_numpy(whole)[None])[0].numpy()
    assert decoded.shape == whole_sound.shape
    assert np.sqrt(np.mean((decoded - whole_sound) ** 2) / np.mean(whole_sound**2)) < 0.1


@pytest.mark.parametrize("frames", [199, 200, 201, 400, 1001])
def test_pieces_join_without_gap_or_overlap(monkeypatch, frames):
    monkeypatch.setattr(codec_io, "CHUNK_SECONDS", 2.0)
    monkeypatch.setattr(codec_io, "CONTEXT_SECONDS", 0.5)
    codec = ExactAudioCodec(2, 50)
    codes = np.random.default_rng(0).integers(0, 64, (2, frames))
    sound = codec_io.decode(codec, [codes])[0]
    assert sound.shape == (frames * 32,)
    np.testing.assert_array_equal(codec_io.encode(codec, [sound])[0], codes)


def test_encodec(encodec):
    sounds = [tone(0.5, 1600), tone(0.3, 1600)]
    codes = codec_io.encode(encodec, sounds)
    assert [c.shape for c in codes] == [(4, 25), (4, 15)]
    expected = encodec.encode(torch.from_numpy(sounds[0])[None, None], bandwidth=0.8).audio_codes[0, 0]
    np.testing.assert_array_equal(codes[0], expected.numpy())
    values = codec_io.decode(encodec, [c[:2] for c in codes])  # fewer codebooks are the first ones
    assert [len(v) for v in values] == [800, 480]
    alone = encodec.decode(expected[None, None, :2], [None]).audio_values[0, 0].detach().numpy()
    np.testing.assert_allclose(values[0], alone, atol=1e-5)


def test_encodec_that_needs_more_than_codes_is_refused(encodec):
    other = EncodecModel(EncodecConfig(**encodec.config.to_diff_dict() | {"normalize": True}))
    with pytest.raises(ValueError, match="Use a mono one with normalize=False"):
        codec_io.encode(other, [tone(0.1, 1600)])


def test_picture_codec_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    codec = diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=16,
        norm_num_groups=2,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    ).eval()
    torch.nn.init.normal_(codec.quantize.embedding.weight)
    pictures = [np.random.default_rng(i).uniform(-1, 1, (3, 16, 16)).astype(np.float32) for i in range(2)]
    codes = codec_io.encode(codec, pictures)
    assert [c.shape for c in codes] == [(1, 64), (1, 64)] and codes[0].max() > codes[0].min()
    decoded = codec_io.decode(codec, codes)
    alone = codec(torch.from_numpy(pictures[1])[None]).sample[0].detach().numpy()  # its own way through
    np.testing.assert_allclose(decoded[1], alone, atol=1e-4)


def test_acoustic_codes_and_voice():
    codec, decoder = ExactAudioCodec(3, 50), EchoDecoder()
    items = [np.arange(5)[None], np.arange(7)[None], np.arange(5)[None] + 1]
    for item, codes in zip(items, codec_io.add_acoustic_codes(decoder, codec, items), strict=True):
        np.testing.assert_array_equal(codes, np.concatenate([item, 0 * item, 0 * item]))
    voice = codec_io.decode(codec, [np.full((3, 400), 9)])[0]  # 8 s; 3 are used
    for item, codes in zip(items, codec_io.add_acoustic_codes(decoder, codec, items, voice), strict=True):
        np.testing.assert_array_equal(codes, np.concatenate([item, 0 * item + 9, 0 * item + 9]))
    assert codec.batches == [(1, 3 * 1600)]


def test_long_speech_keeps_its_voice(monkeypatch):
    """Pieces after the first are prompted by the end of the one before."""
    monkeypatch.setattr(codec_io, "CHUNK_SECONDS", 1.0)
    prompts = []

    class Recorder(EchoDecoder):
        def generate(self, semantic, prompt=None, steps=1, greedy=True, generator=None):
            prompts.append(prompt)
            return super().generate(semantic, prompt, steps, greedy, generator)

    codes = codec_io.add_acoustic_codes(Recorder(), ExactAudioCodec(3, 50), [np.arange(120)[None] % 64])
    assert codes[0].shape == (3, 120)
    assert [p if p is None else p.shape[1] for p in prompts] == [None, 50, 50]
    np.testing.assert_array_equal(prompts[2][0, :, 0], np.arange(50, 100) % 64)
