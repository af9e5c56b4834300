"""Samples of a training run to hear and to see, written with numpy and the standard library only."""

import io
import struct
import wave
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from processing_anygpt.files import write_whole

WINDOW = 512  # samples of a spectrogram's column


def write_sounds(stem: Path, versions: Sequence[np.ndarray], rate: int) -> None:
    """STEM.wav and STEM.png of the same sounds in several versions, the original first.

    Args:
        versions: float [B, T] in [-1, 1] each. Heard one item after the other, each in all its versions; seen with one
            row of spectrograms for each version.
        rate: Hz.
    """
    gap = np.zeros((len(versions[0]), rate // 5))
    sounds = np.stack([np.concatenate([version, gap], axis=1) for version in versions], axis=1)  # [B, versions, T]
    samples = np.round(sounds.reshape(-1).clip(-1, 1) * 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    write_whole(stem.with_suffix(".wav"), lambda temporary: temporary.write_bytes(buffer.getvalue()))
    write_png(stem.with_suffix(".png"), np.concatenate([spectrogram(row) for row in sounds.swapaxes(0, 1)]))


def spectrogram(sounds: np.ndarray) -> np.ndarray:
    """[B, T] -> uint8 [257, columns], end to end: time to the right, frequency up, 70 dB from black to white."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(sounds.reshape(-1), WINDOW // 2), WINDOW)
    magnitude = np.abs(np.fft.rfft(frames[:: WINDOW // 2] * np.hanning(WINDOW))).T  # [frequencies, columns]
    decibel = 20 * np.log10(magnitude / max(magnitude.max(), 1e-9) + 1e-9)
    return (255 * (decibel / 70 + 1).clip(0, 1)).astype(np.uint8)[::-1]


def write_pictures(stem: Path, versions: Sequence[np.ndarray]) -> None:
    """STEM.png: a row for each version, the original first, of float [B, S, S, 3] in [-1, 1]."""
    rows = [np.concatenate(list(version), axis=1) for version in versions]
    write_png(stem.with_suffix(".png"), np.round((np.concatenate(rows).clip(-1, 1) + 1) * 127.5).astype(np.uint8))


def write_png(path: Path, pixels: np.ndarray) -> None:
    """uint8 [H, W] (grey) or [H, W, 3] -> a PNG file (ISO/IEC 15948), each line unfiltered."""
    height, width = pixels.shape[:2]
    colour = 2 if pixels.ndim == 3 else 0
    lines = np.pad(pixels.reshape(height, -1), ((0, 0), (1, 0)))  # each line begins with the number of its filter

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes())) + chunk(b"IEND", b"")
    write_whole(path, lambda temporary: temporary.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks))
