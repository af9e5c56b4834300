"""Reading pictures and sound from whatever a user has, with an error in one line for what can't be used.

Sound: a path, bytes, or an array with its sampling rate -> float32 `[T]` mono in [-1, 1] at the rate asked for.
Pictures: a path, bytes, a PIL image of any mode, or an array -> PIL RGB -> float32 `[3, S, S]` in [-1, 1].

A source that names the network (`http://`, `https://`) is fetched only with `allow_urls=True`; a `data:` URL brings
its bytes along.
"""

import base64
import io
import math
import os
import re
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_SECONDS = 600.0  # longest sound read at once, s: 30,000 speech tokens, more than the context of any backbone
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz
MAX_CHANNELS = 64
MAX_LEVEL = 2.0  # resampled or decoded floats overshoot 1 a little; beyond this they are scaled wrongly
MAX_PIXELS = 64_000_000  # of a picture before it is shrunk
MAX_DOWNLOAD = 100_000_000  # bytes
FETCHED = ("http://", "https://")  # how sources begin that the network has
INLINE = "data:"  # and those that bring their bytes along
# Where a block keeps its media; "audio" and "image" as in transformers' own blocks. What is there goes before where it
# came from: the path that datasets puts beside an array or bytes is often of another machine.
SOURCE_KEYS = ("bytes", "array", "base64", "path", "url", "audio", "image")
# What Pillow may open. Not EPS (runs Ghostscript), not the rare formats with the rare bugs.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "ICO", "TGA")


def find_source(block: Mapping[str, Any], modality: str) -> Any:
    """What a content block, or a cell of a dataset, holds for `load_audio` or `load_image`.

    Raises:
        ValueError: nothing under any of `SOURCE_KEYS` nor under the modality's name, or broken base64.
    """
    key = next((key for key in (*SOURCE_KEYS, modality) if block.get(key) is not None), None)
    if key is None:
        raise ValueError(
            f"Got a block of {modality} with {sorted(block)}, need one of {', '.join(SOURCE_KEYS)} or codes."
        )
    return _from_base64(block[key]) if key == "base64" else block[key]


def load_audio(
    source: Any,
    sampling_rate: int,
    source_rate: float | None = None,
    max_seconds: float = MAX_SECONDS,
    allow_urls: bool = False,
) -> np.ndarray:
    """Reads sound of any rate, channels and sample type.

    Args:
        source: path, bytes of a file, or array `[T]`, `[channels, T]` or `[T, channels]` (numpy, torch, list).
            Integer samples of up to 32 bits are scaled by their type's range; channels are averaged.
        sampling_rate: Hz of what is returned.
        source_rate: Hz of an array; files know theirs.
        max_seconds: longest sound accepted, s. Files are refused by their header, before they are read.
        allow_urls: fetch a source that starts with http:// or https://.

    Returns:
        float32 `[T]`, mono, clipped to [-1, 1].

    Raises:
        ValueError: empty, unreadable, not finite, too long, impossible rate or shape.
        FileNotFoundError: no such file.
    """
    if isinstance(source, (str, os.PathLike, bytes)):
        samples, source_rate, name = _read_audio_file(source, max_seconds, allow_urls)
    else:
        if source_rate is None:
            raise ValueError("Got an audio array without its sampling rate. Pass sampling_rate (Hz) with it.")
        _check_rate(source_rate)
        samples, name = _mono(_as_array(source)), "an array"
        _check_duration(len(samples) / source_rate, max_seconds, name)
    if len(samples) == 0:
        raise ValueError(f"Got audio without samples in {name}. Record or choose a longer one.")
    bad = len(samples) - np.count_nonzero(np.isfinite(samples))
    if bad:
        raise ValueError(
            f"Got audio with {bad} of {len(samples)} samples NaN or infinite in {name}. Repair or re-export it."
        )
    level = float(np.abs(samples).max())
    if level > MAX_LEVEL:
        raise ValueError(
            f"Got float audio up to {level:.4g} in {name}, allowed is [-1, 1]. Divide it by its full scale."
        )
    if source_rate != sampling_rate:
        import soxr  # as soundfile below: a machine that only trains has none

        samples = soxr.resample(samples, source_rate, sampling_rate)
        if len(samples) == 0:  # less than one sample at the new rate
            samples = np.zeros(1, np.float32)
    return np.clip(samples, -1, 1)


def load_image(source: Any, allow_urls: bool = False) -> Image.Image:
    """Reads a picture of any mode.

    Rotation by EXIF is applied, transparency is laid on white, 16 bits become 8, of an animation the first frame
    is taken.

    Args:
        source: path, bytes of a file, PIL image, or array `[H, W]`, `[H, W, C]` or `[C, H, W]` with C = 1, 3 or 4,
            of uint8, uint16, bool, or floats in [0, 1].
        allow_urls: fetch a source that starts with http:// or https://.

    Raises:
        ValueError: unreadable, truncated, more than 64 megapixels, impossible array.
        FileNotFoundError: no such file.
    """
    if isinstance(source, Image.Image):
        image, name = source, "a PIL image"
        _check_pixels(image, name)
    elif isinstance(source, (str, os.PathLike, bytes)):
        image, name = _open_image(source, allow_urls)
    else:
        return _image_from_array(_as_array(source))
    try:
        image.load()
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ... on damaged files
        raise ValueError(f"Can't decode {name}: {error}. It is truncated or damaged; save it again.") from error
    return _to_rgb(ImageOps.exif_transpose(image))


def image_to_array(image: Image.Image, size: int) -> np.ndarray:
    """PIL RGB to float32 `[3, size, size]` in [-1, 1]. Resized without keeping the proportions, as AnyGPT's is."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1


def array_to_image(values: np.ndarray) -> Image.Image:
    """`[3, H, W]` in [-1, 1] (clipped) to PIL RGB."""
    pixels = np.clip((values.transpose(1, 2, 0) + 1) * 127.5, 0, 255)
    return Image.fromarray(np.round(pixels).astype(np.uint8))


def _read_audio_file(source: Any, max_seconds: float, allow_urls: bool) -> tuple[np.ndarray, int, str]:
    import soundfile

    file, name = _open(source, allow_urls)
    try:
        with soundfile.SoundFile(file) as sound:
            _check_rate(sound.samplerate)
            _check_channels(sound.channels)
            _check_duration(sound.frames / sound.samplerate, max_seconds, name)
            # The header may lie, and eight channels of ten minutes are large: read and mix block by block.
            limit = math.ceil(max_seconds * sound.samplerate)
            blocks, length = [], 0
            for block in sound.blocks(blocksize=1 << 18, dtype="float32", always_2d=True):
                blocks.append(block.mean(axis=1))
                length += len(block)
                if length > limit:
                    _check_duration(length / sound.samplerate, max_seconds, name)
            if length < sound.frames or _is_cut_wav(sound.extra_info):
                raise ValueError(f"{name} is truncated: {length} samples can be read. Copy or record it again.")
            samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
            return samples, sound.samplerate, name
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"Can't read {name} as audio: {error.error_string.rstrip('.')}. Use WAV, FLAC, OGG or MP3."
        ) from error


def _is_cut_wav(log: str) -> bool:
    """Whether libsndfile notes that a WAV says it has more data than there are. (Programs that write into a pipe don't
    know how many there will be, and say the most there can be.)"""
    found = re.search(r"^data : (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    return found is not None and int(found[2]) < int(found[1]) < 2**31 - 4096


def _mono(samples: np.ndarray) -> np.ndarray:
    """Any shape and type of samples -> float32 `[T]`."""
    if samples.ndim == 0 or samples.ndim > 2:
        raise ValueError(f"Got an audio array of shape {samples.shape}, need [T], [channels, T] or [T, channels].")
    if samples.dtype.kind == "u":
        middle = 2.0 ** (8 * samples.dtype.itemsize - 1)
        samples = samples / middle - 1
    elif samples.dtype.itemsize > 4 and samples.dtype.kind == "i":  # a list of ints: nobody records in 64 bits
        raise ValueError(f"Got audio samples of type {samples.dtype}, whose full scale is unknown. Make them int16.")
    elif samples.dtype.kind == "i":
        samples = samples / 2.0 ** (8 * samples.dtype.itemsize - 1)
    elif samples.dtype.kind != "f":
        raise ValueError(f"Got audio samples of type {samples.dtype}, need integers or floats.")
    if samples.ndim == 2:
        axis = int(samples.shape[1] < samples.shape[0])  # channels are the shorter side
        _check_channels(samples.shape[axis])
        samples = samples.mean(axis=axis)
    return samples.astype(np.float32)


def _as_array(source: Any) -> np.ndarray:
    """An array of anything; of a tensor also if it is on a GPU, in bfloat16, or has a gradient."""
    if hasattr(source, "detach"):
        source = source.detach().cpu()
        source = source.float() if source.is_floating_point() else source
    return np.asarray(source)


def _check_rate(rate: float) -> None:
    if isinstance(rate, str) or not MIN_RATE <= rate <= MAX_RATE:  # also refuses NaN
        raise ValueError(
            f"Got a sampling rate of {rate!r} Hz, allowed are {MIN_RATE} to {MAX_RATE}. Pass the real one."
        )


def _check_channels(channels: int) -> None:
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"Got audio with {channels} channels, allowed are 1 to {MAX_CHANNELS}. Mix it down first.")


def _check_duration(seconds: float, max_seconds: float, name: str) -> None:
    if seconds > max_seconds:
        raise ValueError(f"Got {seconds:.0f} s of audio in {name}, at most {max_seconds:g} s fit. Cut it first.")


def _open_image(source: Any, allow_urls: bool) -> tuple[Image.Image, str]:
    file, name = _open(source, allow_urls)
    try:
        Image.init()
        known = [kind for kind in IMAGE_FORMATS if kind in Image.OPEN]  # a Pillow may be built without some
        image = Image.open(file, formats=known)
    except UnidentifiedImageError as error:
        raise ValueError(f"Can't read {name} as a picture: unknown format. Use PNG, JPEG or WebP.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"Can't read {name}: {error} Shrink it first.") from error
    except Exception as error:  # damaged headers: OSError, SyntaxError, ValueError, struct.error, ...
        raise ValueError(f"Can't read {name} as a picture: {error}. It is damaged; save it again.") from error
    _check_pixels(image, name)
    return image, name


def _check_pixels(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ValueError(f"Got a picture of {width}x{height} px in {name}, need at least 1x1.")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"Got a picture of {width}x{height} px in {name}, at most {MAX_PIXELS // 1_000_000} megapixels are read. "
            "Shrink it first."
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB; transparency becomes white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _image_from_array(_unit_scale(np.asarray(image), image.mode))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError as error:  # LAB
        raise ValueError(f"Got a picture of mode {image.mode!r}, which Pillow can't turn into RGB.") from error


def _unit_scale(pixels: np.ndarray, mode: str) -> np.ndarray:
    """Grey values of more than 8 bits to floats in [0, 1]."""
    if mode == "F":
        return pixels if pixels.max() <= 1 else pixels / 255
    full = 255 if mode == "I" and pixels.max() <= 255 else 65535  # of 32 bits nobody uses all
    return pixels.astype(np.float64) / full  # Pillow reads 16-bit PNG as "I;16" or "I"


def _image_from_array(pixels: np.ndarray) -> Image.Image:
    shape = pixels.shape
    if pixels.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim not in (2, 3) or pixels.size == 0 or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise ValueError(f"Got a picture array of shape {shape}, need [H, W], [H, W, C] or [C, H, W], C = 1, 3 or 4.")
    if pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
        raise ValueError(
            f"Got a picture array of shape {shape}, at most {MAX_PIXELS // 1_000_000} megapixels are read."
        )
    if pixels.dtype == np.uint16:
        pixels = pixels / 65535
    elif pixels.dtype == bool:
        pixels = pixels.astype(np.float32)
    if pixels.dtype.kind == "f":
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # also refuses NaN
            raise ValueError(
                f"Got a picture array in [{pixels.min():.4g}, {pixels.max():.4g}], floats must be in [0, 1]."
            )
        pixels = np.round(pixels * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"Got a picture array of type {pixels.dtype}, need uint8, uint16, bool or floats in [0, 1].")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))


def _open(source: Any, allow_urls: bool) -> tuple[Any, str]:
    """What soundfile and Pillow can open, and a name for messages."""
    if isinstance(source, bytes):
        if not source:
            raise ValueError("Got an empty file (0 bytes).")
        return io.BytesIO(source), f"{len(source)} bytes"
    if isinstance(source, str) and source.lower().startswith(FETCHED):
        if not allow_urls:
            raise ValueError(f"{source} is not fetched unless asked. Pass allow_urls=True, or download it.")
        return io.BytesIO(_download(source)), source
    if isinstance(source, str) and source.startswith(INLINE):
        header, _, content = source.partition(",")
        if not header.endswith(";base64"):
            raise ValueError(f"Got a data URL that begins {source[:40]!r}, need data:<type>;base64,<content>.")
        return _open(_from_base64(content), allow_urls)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"No file {path}.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, need a file.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes).")
    return str(path), path.name


def _from_base64(text: Any) -> bytes:
    if not isinstance(text, (str, bytes)):
        raise ValueError(f"Got base64 of type {type(text).__name__}, need a string.")
    if len(text) > MAX_DOWNLOAD * 4 // 3:
        raise ValueError(f"Got {len(text)} characters of base64, at most {MAX_DOWNLOAD * 4 // 3} are read.")
    try:
        return base64.b64decode("".join(text.split()) if isinstance(text, str) else text, validate=True)
    except ValueError as error:
        raise ValueError(f"Got base64 that can't be decoded ({error}). Encode the whole file again.") from None


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        data = response.read(MAX_DOWNLOAD + 1)
    if len(data) > MAX_DOWNLOAD:
        raise ValueError(f"{url} is larger than {MAX_DOWNLOAD // 1_000_000} MB. Download and cut it first.")
    return data
