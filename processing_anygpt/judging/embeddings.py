"""Pictures, texts and sounds as vectors of a learned judge: any checkpoint folder or hub id, by transformers.

Nothing here is trained or chosen by this project, and nothing has a default: which judge it was belongs to the score.
Vectors of one item do not depend on what else is judged, but for rounding.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from processing_anygpt.media import load_audio, load_image

WINDOW = 10.0  # s; longer sounds are cut into such pieces (CLAP's own length; it would crop them at random)
SHORTEST = 1.0  # s; shorter sounds are filled up with silence, so that every judge has frames enough
SILENCE = 1e-4  # peak under which there is nobody to be heard


# ---------------------------------------------------------------- what is judged


def read_image(cell: dict[str, Any]) -> Any:
    """PIL RGB of a cell of a `datasets.Image(decode=False)` column."""
    return load_image(cell["bytes"] if cell["bytes"] is not None else cell["path"])


def read_sound(sound: Any, rate: int, sampling_rate: float | None) -> np.ndarray:
    """float32 [T] at `rate` Hz of a path or a waveform [T] at `sampling_rate` Hz, at least `SHORTEST` s long."""
    wave = load_audio(sound if isinstance(sound, str) else np.asarray(sound, np.float32), rate, sampling_rate)
    return np.pad(wave, (0, max(0, round(SHORTEST * rate) - len(wave))))


def windows(wave: np.ndarray, size: int) -> list[np.ndarray]:
    """Consecutive pieces of `size` samples; the rest counts if it is at least half of one, or all there is."""
    count = max(1, (len(wave) + size // 2) // size)
    return [wave[i * size : (i + 1) * size] for i in range(count)]


# ---------------------------------------------------------------- pictures and texts


def image_vectors(cells: Sequence[dict], checkpoint: str, device: str, batch_size: int) -> np.ndarray:
    """float32 [N, D], as the checkpoint gives them: CLIP's projection, another vision model's pooled output, or the
    features of a TorchScript file of Inception-v3.

    Such a file (`.pt`) is called as StyleGAN's and clean-fid's are: `file(uint8 [B, 3, H, W], return_features=True)`.
    """
    if str(checkpoint).endswith(".pt"):
        detector = _script(str(checkpoint), device)
        found = []
        for cell in cells:  # one by one: sizes may differ, and the file itself resizes
            pixels = torch.from_numpy(np.asarray(read_image(cell)).transpose(2, 0, 1).copy())[None].to(device)
            with torch.inference_mode():
                found.append(detector(pixels, return_features=True).float().cpu().numpy())
        return np.concatenate(found)
    model, processor = _model("AutoModel", checkpoint, device), _processor("AutoImageProcessor", checkpoint)
    found = []
    for batch in _batches(cells, batch_size):
        inputs = processor(images=[read_image(cell) for cell in batch], return_tensors="pt").to(device)
        with torch.inference_mode():
            features = getattr(model, "get_image_features", model)(**inputs)
        found.append(features.pooler_output.float().cpu().numpy())
    return np.concatenate(found)


def text_vectors(texts: Sequence[str], checkpoint: str, device: str, batch_size: int) -> np.ndarray:
    """float32 [N, D] of CLIP's or CLAP's text side; texts longer than it reads are cut."""
    model, tokenizer = _model("AutoModel", checkpoint, device), _processor("AutoTokenizer", checkpoint)
    found = []
    for batch in _batches(texts, batch_size):
        inputs = tokenizer(list(batch), padding=True, truncation=True, return_tensors="pt").to(device)
        with torch.inference_mode():
            features = model.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        found.append(features.pooler_output.float().cpu().numpy())
    return np.concatenate(found)


# ---------------------------------------------------------------- sounds


def sound_vectors(
    sounds: Sequence[Any], checkpoint: str, device: str, batch_size: int, sampling_rate: float | None
) -> list[np.ndarray]:
    """float32 [n, D] of each sound: one vector for each window of 10 s. CLAP's projection, or the mean over time of
    another audio model's last hidden states."""
    model, extractor = _model("AutoModel", checkpoint, device), _processor("AutoFeatureExtractor", checkpoint)
    rate = extractor.sampling_rate
    pieces = [windows(read_sound(sound, rate, sampling_rate), round(WINDOW * rate)) for sound in sounds]
    found = []
    if hasattr(model, "get_audio_features"):
        for batch in _batches([piece for group in pieces for piece in group], batch_size):
            inputs = extractor(list(batch), sampling_rate=rate, return_tensors="pt")
            # Without a long clip the extractor calls a random one long; ours never are.
            longer = torch.zeros_like(inputs["is_longer"])
            with torch.inference_mode():
                features = model.get_audio_features(inputs["input_features"].to(device), is_longer=longer.to(device))
            found.append(features.pooler_output.float().cpu().numpy())
    else:
        for piece in (piece for group in pieces for piece in group):  # one by one: padding would change the means
            inputs = extractor(piece, sampling_rate=rate, return_tensors="pt").to(device)
            with torch.inference_mode():
                found.append(model(**inputs).last_hidden_state.mean(1).float().cpu().numpy())
    vectors = np.concatenate(found)
    return np.split(vectors, np.cumsum([len(group) for group in pieces])[:-1])


def speaker_vectors(sounds: Sequence[Any], checkpoint: str, device: str, sampling_rate: float | None) -> np.ndarray:
    """float32 [N, D] of length 1: the x-vectors of a speaker verification model, or Resemblyzer's (`"resemblyzer"`).

    Silence has no speaker: zeros.
    """
    embed, rate = _resemblyzer() if checkpoint == "resemblyzer" else _x_vectors(checkpoint, device)
    waves = [read_sound(sound, rate, sampling_rate) for sound in sounds]
    vectors = [embed(wave) if np.abs(wave).max() > SILENCE else None for wave in waves]
    width = next((len(vector) for vector in vectors if vector is not None), 1)
    return np.stack([unit(vector) if vector is not None else np.zeros(width, np.float32) for vector in vectors])


def _x_vectors(checkpoint: str, device: str) -> tuple[Any, int]:
    model, extractor = (
        _model("AutoModelForAudioXVector", checkpoint, device),
        _processor("AutoFeatureExtractor", checkpoint),
    )

    def embed(wave: np.ndarray) -> np.ndarray:
        inputs = extractor(wave, sampling_rate=extractor.sampling_rate, return_tensors="pt").to(device)
        with torch.inference_mode():
            return model(**inputs).embeddings[0].float().cpu().numpy()

    return embed, extractor.sampling_rate


@functools.cache
def _resemblyzer() -> tuple[Any, int]:
    """Its own preparation (louder if quiet, long pauses cut) and encoder, on the CPU."""
    try:
        import resemblyzer
    except ImportError:
        raise ValueError("The judge 'resemblyzer' needs its package: see `make eval-deps`.") from None
    encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)

    def embed(wave: np.ndarray) -> np.ndarray | None:
        voiced = resemblyzer.preprocess_wav(wave, source_sr=16_000)
        return encoder.embed_utterance(voiced) if len(voiced) else None

    return embed, 16_000


# ---------------------------------------------------------------- common


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [..., D] scaled to length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


def cosines(first: np.ndarray, second: np.ndarray) -> list[float]:
    """Cosine of each pair of rows of [N, D] and [N, D]; 0 where one is all zeros."""
    if first.shape[1] != second.shape[1]:  # one side may have been nothing but silence
        return [0.0] * len(first)
    return (unit(first.astype(np.float64)) * unit(second.astype(np.float64))).sum(1).tolist()


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    if size < 1 or not items:
        raise ValueError(f"Got {len(items)} items in batches of {size}; both must be at least 1.")
    return (items[start : start + size] for start in range(0, len(items), size))


@functools.lru_cache(maxsize=4)
def _model(auto_class: str, checkpoint: str, device: str) -> Any:
    return _load(auto_class, checkpoint).eval().to(device)


@functools.lru_cache(maxsize=8)
def _processor(auto_class: str, checkpoint: str) -> Any:
    return _load(auto_class, checkpoint)


def _load(auto_class: str, checkpoint: str) -> Any:
    if os.sep in checkpoint and not os.path.isdir(checkpoint) and (os.path.isabs(checkpoint) or checkpoint[0] == "."):
        raise ValueError(f"Got the judge {checkpoint!r}, but there is no such folder. Give one, or a hub id.")
    try:
        return getattr(transformers, auto_class).from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"Can't load the judge {checkpoint!r} by transformers' {auto_class}: {reason}") from None


@functools.lru_cache(maxsize=1)
def _script(file: str, device: str) -> Any:
    if not os.path.isfile(file):
        raise ValueError(
            f"Got the judge {file!r}, but there is no such file. Give a TorchScript file of Inception-v3."
        )
    return torch.jit.load(file, map_location=device).eval()
