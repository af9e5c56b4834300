"""Reading sound and pictures: every kind that works, and one line for every kind that can't."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from processing_tools import tone

from processing_anygpt.media import array_to_image, find_source, image_to_array, load_audio, load_image

RATE = 16000


def wav_bytes(samples: np.ndarray, rate: int, subtype: str = "PCM_16", kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, subtype=subtype, format=kind)
    return file.getvalue()


def image_bytes(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000, 96000])
def test_any_rate_becomes_ours(rate):
    sound = load_audio(tone(1, rate), RATE, rate)
    assert sound.dtype == np.float32 and sound.shape == (RATE,)
    inner = slice(RATE // 10, -RATE // 10)
    np.testing.assert_allclose(sound[inner], tone(1, RATE)[inner], atol=2e-3)


@pytest.mark.parametrize(
    ("dtype", "scale", "shift"),
    [
        ("int8", 127, 0),
        ("uint8", 127, 128),
        ("int16", 32767, 0),
        ("int32", 2**31 - 1, 0),
        ("float16", 1, 0),
        ("float64", 1, 0),
    ],
)
def test_any_sample_type(dtype, scale, shift):
    samples = (tone(0.1, RATE).astype(np.float64) * scale + shift).astype(dtype)
    np.testing.assert_allclose(load_audio(samples, RATE, RATE), tone(0.1, RATE), atol=0.02)


@pytest.mark.parametrize(
    "kind", ["list", "torch", "bfloat16 with gradient", "channels first", "channels last", "8 channels"]
)
def test_any_container_of_samples(kind):
    sound = tone(0.1, RATE)
    source = {
        "list": sound.tolist(),
        "torch": torch.from_numpy(sound),
        "bfloat16 with gradient": torch.from_numpy(sound).bfloat16().requires_grad_(),
        "channels first": np.stack([sound, sound]),
        "channels last": np.stack([sound * 2, sound * 0], 1),
        "8 channels": np.stack([sound] * 8, 1),
    }[kind]
    np.testing.assert_allclose(load_audio(source, RATE, RATE), sound, atol=2e-3 if "bfloat16" in kind else 1e-6)


@pytest.mark.parametrize(
    ("kind", "subtype"), [("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")]
)
def test_files_and_bytes(tmp_path, kind, subtype):
    sound = np.stack([tone(0.5, 44100)] * 3, 1)
    data = wav_bytes(sound, 44100, subtype, kind)
    path = tmp_path / "sound.bin"  # known by what it holds, not by its name
    path.write_bytes(data)
    loaded = load_audio(path, RATE)
    assert loaded.shape == (RATE // 2,)
    np.testing.assert_allclose(loaded[800:-800], tone(0.5, RATE)[800:-800], atol=0.02)
    np.testing.assert_array_equal(loaded, load_audio(data, RATE))


def test_one_sample_is_sound():
    assert load_audio(np.zeros(1), RATE, 48000).shape == (1,)


def long_header(seconds: int) -> bytes:
    """A WAV header that promises hours, without them."""
    size = seconds * RATE * 2
    return (
        b"RIFF"
        + struct.pack("<I", size + 36)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
        + b"data"
        + struct.pack("<I", size)
    )


def three_hours(tmp_path):
    path = tmp_path / "long.wav"
    with open(path, "wb") as file:
        file.write(long_header(3 * 3600))
        file.truncate(44 + 3 * 3600 * RATE * 2)  # sparse: takes no room
    return path


BAD_AUDIO = {
    "empty array": (lambda _: np.zeros(0), 16000, "without samples"),
    "empty bytes": (lambda _: b"", None, "empty file"),
    "no samples": (lambda _: wav_bytes(np.zeros(0), RATE), None, "without samples"),
    "not sound": (lambda _: b"certainly no sound", None, "Can't read 18 bytes as audio"),
    "a picture": (lambda _: image_bytes(Image.new("L", (4, 4))), None, "as audio"),
    "cut header": (lambda _: wav_bytes(tone(1, RATE), RATE)[:30], None, "as audio"),
    "cut wav": (
        lambda _: wav_bytes(tone(1, RATE), RATE)[: 44 + 16000],
        None,
        "truncated: 8000 samples can be read",
    ),
    "cut flac": (lambda _: wav_bytes(tone(1, RATE), RATE, kind="FLAC")[:2000], None, "truncated|as audio"),
    "nan": (lambda _: np.array([0.1, np.nan, np.inf]), 16000, "2 of 3 samples NaN or infinite"),
    "nan in a file": (lambda _: wav_bytes(np.array([0.0, np.nan]), RATE, "FLOAT"), None, "1 of 2 samples NaN"),
    "0 Hz": (lambda _: np.zeros(10), 0, "sampling rate of 0 Hz, allowed are 1000"),
    "negative Hz": (lambda _: np.zeros(10), -16000, "sampling rate of -16000"),
    "nan Hz": (lambda _: np.zeros(10), float("nan"), "sampling rate of nan"),
    "no rate": (lambda _: np.zeros(10), None, "without its sampling rate"),
    "wrong scale": (lambda _: tone(0.1, RATE) * 32768, 16000, "Divide it by its full scale"),
    "64 bits": (lambda _: [0, 1000, -1000], 16000, "type int64, whose full scale"),
    "rate as text": (lambda _: np.zeros(10), "16000", "sampling rate of '16000'"),
    "text samples": (lambda _: np.array(["a", "b"]), 16000, "type <U1"),
    "complex": (lambda _: np.zeros(4, complex), 16000, "type complex128"),
    "3 axes": (lambda _: np.zeros((2, 2, 2)), 16000, r"shape \(2, 2, 2\)"),
    "100 channels": (lambda _: np.zeros((100, 101)), 16000, "100 channels"),
    "three hours": (three_hours, None, "Got 10800 s of audio in long.wav, at most 600 s"),
    "long array": (lambda _: np.zeros(1000 * 700), 1000, "Got 700 s"),
    "folder": (lambda tmp_path: tmp_path, None, "is a folder"),
    "url": (lambda _: "https://example.org/a.wav", None, "not fetched unless asked"),
}


@pytest.mark.parametrize("name", BAD_AUDIO)
def test_bad_audio(tmp_path, name):
    make, rate, complaint = BAD_AUDIO[name]
    with pytest.raises(ValueError, match=complaint) as error:
        load_audio(make(tmp_path), RATE, rate)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("said", [2**31 - 4096, 2**32 - 1])
def test_a_recording_of_no_stated_length_is_whole(said):
    """As programs write that don't know how long it will be: into a pipe."""
    data = bytearray(wav_bytes(tone(1, RATE), RATE))
    data[40:44] = struct.pack("<I", said)
    assert load_audio(bytes(data), RATE).shape == (RATE,)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="No file"):
        load_audio(tmp_path / "none.wav", RATE)
    with pytest.raises(FileNotFoundError, match="No file"):
        load_image(str(tmp_path / "none.png"))


def test_urls_are_fetched_when_asked(monkeypatch):
    import processing_anygpt.media as media

    monkeypatch.setattr(media.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(image_bytes(RED)))
    assert load_image("https://example.org/red.png", allow_urls=True).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(ValueError, match="not fetched unless asked"):
        load_image("https://example.org/red.png")


def test_a_data_url_brings_its_bytes(tmp_path):
    text = base64.b64encode(image_bytes(RED)).decode()
    assert load_image(f"data:image/png;base64,{text}").getpixel((0, 0)) == (255, 0, 0)
    lines = {"base64": text[:40] + "\n" + text[40:]}  # as in MIME
    assert load_image(find_source(lines, "image")).size == RED.size


@pytest.mark.parametrize(
    "source, complaint",
    [
        ("data:image/png,%89PNG", r"begins 'data:image/png,%89PNG', need data:<type>;base64,<content>"),
        ("data:image/png;base64,!!!!", "base64 that can't be decoded"),
        ("data:image/png;base64,", "empty file"),
        ("data:image/png;base64,AAAA", "Can't read 3 bytes as a picture"),
    ],
)
def test_bad_data_urls(source, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_image(source)


RED = Image.new("RGB", (20, 10), "red")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"])
def test_white_is_white_in_every_mode(mode):
    if mode in ("I", "I;16"):
        image = Image.fromarray(np.full((6, 6), 65535, np.uint16)).convert(mode)
    else:
        image = Image.new("L", (6, 6), 255).convert("RGB").convert(mode if mode in ("1", "L", "F") else "RGB")
        image = image if mode in ("1", "L", "F") else image.convert("RGBA" if mode == "LA" else "RGB").convert(mode)
    assert image.mode == mode
    loaded = load_image(image)
    assert loaded.mode == "RGB"
    assert loaded.getpixel((3, 3)) == (255, 255, 255)


def test_16_bit_grey_keeps_its_level():
    image = Image.fromarray(np.full((4, 4), 0x8000, np.uint16))
    assert load_image(image_bytes(image)).getpixel((0, 0)) == (128, 128, 128)


def test_cmyk_jpeg():
    loaded = load_image(image_bytes(RED.convert("CMYK"), "JPEG"))
    assert np.abs(np.array(loaded.getpixel((5, 5))) - (254, 0, 0)).max() < 12


def test_transparency_is_white():
    for image in (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), Image.new("LA", (4, 4), (0, 0))):
        assert load_image(image).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30] * 256)
    assert load_image(image_bytes(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def test_rotation_by_exif():
    image = Image.new("RGB", (20, 10), "white")
    image.paste((0, 0, 255), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    loaded = load_image(image_bytes(image, "PNG", exif=exif))
    assert loaded.size == (10, 20)
    assert loaded.getpixel((5, 2)) == (0, 0, 255) and loaded.getpixel((5, 17)) == (255, 255, 255)


@pytest.mark.parametrize(
    "array",
    [
        np.full((5, 7, 3), (255, 0, 0), np.uint8),
        np.full((5, 7, 3), (1.0, 0, 0)),
        np.full((5, 7, 4), (255, 0, 0, 255), np.uint8),
        np.full((3, 5, 7), [[[1.0]], [[0]], [[0]]], np.float32),
        torch.tensor([1.0, 0, 0]).reshape(3, 1, 1).expand(3, 5, 7),
        np.full((5, 7, 3), (65535, 0, 0), np.uint16),
    ],
)
def test_arrays(array):
    loaded = load_image(array)
    assert loaded.size == (7, 5) and loaded.getpixel((6, 4)) == (255, 0, 0)


def test_grey_and_bool_arrays():
    assert load_image(np.full((5, 7), 128, np.uint8)).getpixel((0, 0)) == (128, 128, 128)
    assert load_image(np.ones((5, 7, 1), bool)).getpixel((0, 0)) == (255, 255, 255)


def test_one_pixel_and_very_long_pictures():
    assert (image_to_array(load_image(Image.new("RGB", (1, 1), "lime")), 64)[1] == 1).all()
    assert image_to_array(load_image(Image.new("L", (20000, 1), 255)), 64).min() == 1


def test_pixels_survive_the_way_there_and_back():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    values = image_to_array(image, 8)
    assert values.shape == (3, 8, 8) and values.dtype == np.float32
    assert -1 <= values.min() and values.max() <= 1
    np.testing.assert_array_equal(np.asarray(array_to_image(values)), np.asarray(image))


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BAD_IMAGES = {
    "empty": (lambda: b"", "empty file"),
    "not a picture": (lambda: b"certainly no picture", "unknown format"),
    "sound": (lambda: wav_bytes(tone(0.1, RATE), RATE), "unknown format"),
    "cut png": (lambda: image_bytes(Image.effect_noise((64, 64), 50))[:900], "truncated or damaged"),
    "cut jpeg": (lambda: image_bytes(Image.effect_noise((64, 64), 50), "JPEG")[:900], "truncated or damaged"),
    "20,000 px": (lambda: png_header(20000, 20000), "20000x20000 px|decompression bomb|exceeds limit"),
    "9,000 px": (lambda: png_header(9000, 9000), "9000x9000 px in .*, at most 64 megapixels"),
    "no pixels": (lambda: np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
    "2 channels": (lambda: np.zeros((5, 7, 2), np.uint8), r"shape \(5, 7, 2\)"),
    "float scale": (lambda: np.full((4, 4, 3), 200.0), r"\[200, 200\], floats must be in \[0, 1\]"),
    "nan": (lambda: np.full((4, 4, 3), np.nan), r"floats must be in \[0, 1\]"),
    "int64": (lambda: np.zeros((4, 4), np.int64), "type int64"),
    "vector": (lambda: np.zeros(4, np.uint8), r"shape \(4,\)"),
    "url": (lambda: "http://example.org/a.png", "not fetched unless asked"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_images(name):
    make, complaint = BAD_IMAGES[name]
    with pytest.raises(ValueError, match=complaint) as error:
        load_image(make())
    assert "\n" not in str(error.value)
