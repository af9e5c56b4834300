"""The spectral music codec: the shipped checkpoint on shipped clips."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModel

import modeling_anygpt.codecs
from modeling_anygpt.codecs.spectral import SpectralCodecConfig, SpectralCodecModel
from processing_anygpt import codec_io

CHECKPOINT = Path(modeling_anygpt.codecs.__file__).parents[1] / "pretrained/anygpt_tiny/music_codec"
CLIPS = sorted((Path(__file__).parents[1] / "examples").glob("tune_*.wav"))


@pytest.fixture(scope="module")
def codec():
    return SpectralCodecModel.from_pretrained(CHECKPOINT).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clips():
    audio = []
    for path in CLIPS:
        values, rate = soundfile.read(path, dtype="float32")
        assert rate == 16000 and values.shape == (80000,)
        audio.append(values)
    return torch.from_numpy(np.stack(audio))


@pytest.fixture(scope="module")
def codes(codec, clips):
    return codec.encode(clips)


@pytest.fixture(scope="module")
def decoded(codec, codes):
    return codec.decode(codes)


def loudest(values: torch.Tensor) -> float:
    """Frequency (Hz) of the strongest partial of a piece of sound."""
    spectrum = torch.fft.rfft(values * torch.hann_window(len(values)), 32768).abs()
    return float(spectrum[1:].argmax() + 1) * 16000 / 32768


def test_shapes_and_types(clips, codes, decoded):
    assert codes.shape == (len(clips), 2, 125) and codes.dtype == torch.int64
    assert 0 <= codes.min() and codes.max() < 1024
    assert decoded.shape == (len(clips), 80000) and decoded.dtype == torch.float32
    assert decoded.abs().max() <= 1


def test_config_says_what_the_processor_needs(codec):
    config = codec.config
    assert (config.sampling_rate, config.frame_rate, config.codebook_size, config.num_codebooks) == (
        16000,
        25,
        1024,
        2,
    )


def test_auto_model_loads_the_same_codec_in_float32(clips, codes):
    auto = AutoModel.from_pretrained(CHECKPOINT).eval()
    assert isinstance(auto, SpectralCodecModel) and auto.dtype == torch.float32
    assert torch.equal(auto.encode(clips[:1]), codes[:1])


def test_checkpoint_is_small():
    stored = sum(path.stat().st_size for path in CHECKPOINT.iterdir())
    assert stored <= 6e6


def test_batch_equals_alone(codec, clips, codes):
    for i in range(len(clips)):
        assert torch.equal(codec.encode(clips[i : i + 1])[0], codes[i])
    together = codec.decode(codes[:, :, :25])
    for i in range(len(clips)):
        assert torch.allclose(together[i], codec.decode(codes[i : i + 1, :, :25])[0], atol=1e-3)


def test_decoding_is_deterministic(codec, codes):
    assert torch.equal(codec.decode(codes[:1, :, :25]), codec.decode(codes[:1, :, :25]))


def test_pitch_is_kept(clips, decoded):
    """In most 0.4 s pieces the strongest partial is where it was, within a semitone; other clips' pieces are not."""
    pieces = range(0, 76800, 6400)

    def kept(a: torch.Tensor, b: torch.Tensor) -> float:
        ratios = [loudest(a[s : s + 6400]) / loudest(b[s : s + 6400]) for s in pieces]
        return float(np.mean([abs(12 * np.log2(r)) < 1 for r in ratios]))

    for i in range(len(clips)):
        assert kept(clips[i], decoded[i]) >= 0.75
        assert kept(clips[i], decoded[i - 1]) < 0.5


def test_loudness_and_rhythm_are_kept(clips, decoded):
    """Energy in steps of 0.1 s runs alike."""
    for original, copy in zip(clips, decoded):
        rms = [x.reshape(50, 1600).square().mean(1).sqrt() for x in (original, copy)]
        assert torch.corrcoef(torch.stack(rms))[0, 1] > 0.8
        assert 0.7 < rms[1].mean() / rms[0].mean() < 1.4


def test_last_frame_is_filled_up_with_silence(codec, clips):
    short = clips[:1, :1000]
    padded = torch.cat([short, torch.zeros(1, 280)], dim=1)
    assert codec.encode(short).shape == (1, 2, 2)
    assert torch.equal(codec.encode(short), codec.encode(padded))
    assert codec.decode(codec.encode(clips[:1, :1])).shape == (1, 640)


def test_silence_stays_silent(codec):
    decoded = codec(torch.zeros(1, 16000))
    assert decoded.square().mean().sqrt() < 0.02


def test_bad_input_is_refused(codec):
    with pytest.raises(ValueError, match="allowed: floating"):
        codec.encode(torch.zeros(80000))
    with pytest.raises(ValueError, match="int16"):
        codec.encode(torch.zeros(1, 80000, dtype=torch.int16))
    with pytest.raises(ValueError, match="one or more of each"):
        codec.encode(torch.zeros(1, 0))
    with pytest.raises(ValueError, match="NaN or infinite"):
        codec.encode(torch.full((1, 800), torch.nan))
    with pytest.raises(ValueError, match=r"allowed: integer \[batch, 2"):
        codec.decode(torch.zeros(1, 4, 10, dtype=torch.long))
    with pytest.raises(ValueError, match="frames >= 1"):
        codec.decode(torch.zeros(1, 2, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="integer"):
        codec.decode(torch.zeros(1, 2, 10))
    with pytest.raises(ValueError, match="from 0 to 1024; allowed: 0 to 1023"):
        codec.decode(torch.tensor([[[0], [1024]]]))
    with pytest.raises(ValueError, match="from -1"):
        codec.decode(torch.tensor([[[0], [-1]]]))


def test_inversion_finds_the_phases_of_a_sine():
    """Without any network: log magnitudes of a sine become the sine again, at another length than the clips'."""
    model = SpectralCodecModel(SpectralCodecConfig(hidden_size=8, encoder_layers=1, decoder_layers=1))
    time = torch.arange(640 * 40) / 16000
    sine = 0.5 * torch.sin(2 * torch.pi * 523.25 * time)[None]
    inverted = model.invert(model.log_magnitudes(sine))
    assert inverted.shape == sine.shape
    assert loudest(inverted[0, 6400:19200]) == pytest.approx(523.25, abs=1)
    assert inverted[0, 6400:19200].square().mean().sqrt() == pytest.approx(0.5 / 2**0.5, rel=0.03)


def test_long_tones_run_on_without_clicks():
    """Over 34 s sound goes through codecs in pieces; this one's phases would not meet there."""
    torch.manual_seed(0)
    model = SpectralCodecModel(SpectralCodecConfig(hidden_size=8, encoder_layers=1, decoder_layers=1)).eval()
    codes = torch.randint(0, 1024, (1, 2, 1)).expand(-1, -1, 40 * 25)
    (pieces,) = codec_io.decode(model, [codes[0].numpy()])
    assert np.array_equal(pieces, model.decode(codes)[0].numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype, clips):
    model = SpectralCodecModel(SpectralCodecConfig(hidden_size=8, encoder_layers=1, decoder_layers=1)).eval()
    codes = model.encode(clips[:1])
    half = model.to(dtype)
    assert (half.encode(clips[:1].to(dtype)) == codes).float().mean() > 0.5
    made = half.decode(codes)
    assert made.isfinite().all() and not made.requires_grad


def test_save_and_load_give_the_same_codes(tmp_path, clips):
    model = SpectralCodecModel(SpectralCodecConfig(hidden_size=8, encoder_layers=1, decoder_layers=1)).eval()
    model.save_pretrained(tmp_path)
    again = SpectralCodecModel.from_pretrained(tmp_path).eval()
    assert torch.equal(again.encode(clips[:1]), model.encode(clips[:1]))
