"""A sound as a picture: mel-spaced spectrogram, as PNG bytes, with numpy and Pillow only."""

import io

import numpy as np
from PIL import Image

# Dark violet to pale yellow, evenly spaced in loudness: readable on light and dark pages and for the colour-blind.
COLOURS = np.array([(0, 0, 4), (59, 15, 112), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191)])


def spectrogram(waveform: np.ndarray, sampling_rate: int, width: int = 640, height: int = 128) -> np.ndarray:
    """Loudness of `waveform` [samples] as an image [height, width, 3] uint8: time to the right, mel-spaced frequency
    from 60 Hz (bottom) to half the sampling rate (top), 70 dB from black to the loudest point."""
    window = 512 if sampling_rate <= 16000 else 1024
    padded = np.pad(np.asarray(waveform, dtype=np.float64).reshape(-1), window // 2)
    starts = np.linspace(0, max(len(padded) - window, 0), width).astype(int)
    frames = np.stack([np.resize(padded[s : s + window], window) for s in starts]) * np.hanning(window)
    power = np.abs(np.fft.rfft(frames)) ** 2  # [width, window/2 + 1]
    mel = np.linspace(mel_scale(60), mel_scale(sampling_rate / 2), height)
    bins = 700 * (10 ** (mel / 2595) - 1) * window / sampling_rate
    rows = np.stack([np.interp(bins, np.arange(power.shape[1]), frame) for frame in power], axis=1)  # [height, width]
    decibel = 10 * np.log10(rows + 1e-10)
    loudness = np.clip((decibel - decibel.max()) / 70 + 1, 0, 1) * (rows.max() > 1e-9)
    place = loudness * (len(COLOURS) - 1)
    image = np.stack([np.interp(place, np.arange(len(COLOURS)), channel) for channel in COLOURS.T], axis=-1)
    return image[::-1].round().astype(np.uint8)


def mel_scale(frequency: float) -> float:
    return 2595 * np.log10(1 + frequency / 700)


def spectrogram_png(waveform: np.ndarray, sampling_rate: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(spectrogram(waveform, sampling_rate)).save(buffer, "png", optimize=True)
    return buffer.getvalue()
