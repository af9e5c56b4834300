"""Codecs in one dialect: lists of items of any length in, lists out.

The one place that knows how library models differ (`_encode_batch`, `_decode_batch`), that equal lengths are batched
and unequal ones are not (padding would change the codes), and that long sound goes through in pieces.

B batch, K codebooks, T frames, S picture side in px; "samples" are audio samples.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

CHUNK_SECONDS = 30.0  # longer sound is cut into pieces of this length, s
CONTEXT_SECONDS = 2.0  # heard on either side of a piece and then dropped, s
MAX_BATCH = 32  # items in one pass
PROMPT_SECONDS = 3.0  # of the voice to imitate, s
MAX_PAINTED = 4  # pictures that a diffusion model works on at once


def encode(codec: Any, items: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Media to codes.

    Args:
        codec: a codec of this project, transformers' EncodecModel, or diffusers' VQModel.
        items: sounds `[samples]` at the codec's rate, or pictures `[3, S, S]`; float32 in [-1, 1].

    Returns:
        Codes `[K, T]` int64 of each item: those it gets alone. K is the codec's, all codebooks.
    """

    def encode_equal(batch: np.ndarray) -> np.ndarray:
        return _encode_batch(codec, _to_device(codec, batch)).cpu().numpy()

    if items and items[0].ndim == 1:
        hop = _samples_per_frame(codec)
        items = [np.pad(item, (0, max(0, hop - len(item)))) for item in items]  # at least one frame
        return _in_pieces(codec, encode_equal, items, unit_in=hop, unit_out=1)
    return _by_length(encode_equal, items)


def check_codec(spec: Any, config: Any) -> None:
    """ValueError if a codec with this config is not the one that a row of the modality table speaks of."""
    of_codec = {
        "sampling_rate": getattr(config, "sampling_rate", None),
        "frame_rate": getattr(config, "frame_rate", None),
        # VQModel of diffusers has a name of its own
        "codebook_size": getattr(config, "codebook_size", getattr(config, "num_vq_embeddings", None)),
    }
    for key, value in of_codec.items():
        stated = getattr(spec, key)
        if value != stated and (value is not None or key == "sampling_rate"):
            raise ValueError(
                f"The {spec.name} codec has a {key} of {value}, the modality table says {stated}. Put the codec that "
                "belongs to this checkpoint in its place, or correct the table."
            )


def decode(codec: Any, items: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Codes to media, the inverse of `encode`.

    Args:
        items: codes `[K, T]`, at least one frame each.

    Returns:
        Sounds `[samples]` or pictures `[3, S, S]`, float32; of SEED-2 the embeddings `[D]` that `paint` needs.
    """

    def decode_equal(batch: np.ndarray) -> np.ndarray:
        return _decode_batch(codec, torch.from_numpy(batch).to(codec.device)).float().cpu().numpy()

    if is_audio(codec):
        whole = getattr(codec, "decodes_whole", False)
        return _in_pieces(codec, decode_equal, items, unit_in=1, unit_out=_samples_per_frame(codec), whole=whole)
    return _by_length(decode_equal, items)


def add_acoustic_codes(
    decoder: Any,
    codec: Any,
    items: Sequence[np.ndarray],
    voice: np.ndarray | None = None,
    steps: int = 1,
    generator: torch.Generator | None = None,
) -> list[np.ndarray]:
    """Semantic codes `[1, T]` -> all codes of the speech codec `[K, T]`, filled in by SoundStorm.

    Args:
        decoder: a `SoundStormModel`.
        codec: the speech codec whose codes it fills in.
        voice: `[samples]` of the voice to speak in; its first 3 s are used. None: a voice of the model's choice.
        steps: refinements of the first acoustic level; more is better and slower.
        generator: of the draws when steps > 1.

    Long items go through in pieces; from the second on, the end of the piece before is the voice if none was given.
    """
    frame_rate = codec.config.frame_rate
    prompt_frames = round(PROMPT_SECONDS * frame_rate)
    piece_frames = round(CHUNK_SECONDS * frame_rate)
    prompt = None
    if voice is not None:
        seconds = int(PROMPT_SECONDS * codec.config.sampling_rate)
        prompt = encode(codec, [voice[:seconds]])[0][None]  # [1, K, P]

    def fill(semantic: np.ndarray) -> np.ndarray:  # [B, 1, T] -> [B, K, T]
        pieces: list[np.ndarray] = []
        for start in range(0, semantic.shape[2], piece_frames):
            given = prompt
            if given is None and pieces:
                given = pieces[-1][:, :, -prompt_frames:]
            if given is not None:
                given = np.broadcast_to(given, (len(semantic), *given.shape[1:]))
                given = torch.from_numpy(given.transpose(0, 2, 1).copy()).to(decoder.device)  # [B, P, K]
            piece = torch.from_numpy(semantic[:, 0, start : start + piece_frames]).to(decoder.device)
            filled = decoder.generate(piece, given, steps=steps, greedy=steps == 1, generator=generator)
            pieces.append(filled.transpose(1, 2).cpu().numpy())
        return np.concatenate(pieces, axis=2)

    with torch.inference_mode():
        return _by_length(fill, items)


def paint(
    decoder: Any,
    codec: Any,
    items: Sequence[np.ndarray],
    negative: np.ndarray | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    generator: torch.Generator | None = None,
) -> list[np.ndarray]:
    """Codes of pictures `[K, T]` -> pictures `[3, H, W]` in [-1, 1], painted by a diffusion model.

    Args:
        decoder: an `UnclipDecoder`.
        codec: the picture codec, whose `decode` gives embeddings.
        negative: codes `[K, T]` of what all the pictures shall not look like.
        steps, guidance: of the diffusion; None: the decoder's own.
        generator: of the draws; each picture takes one seed from it and is what it would be alone.
    """
    embeddings = torch.from_numpy(np.stack(decode(codec, items)))
    unwanted = None if negative is None else torch.from_numpy(decode(codec, [negative])[0])
    options = {"steps": steps, "guidance": guidance}
    options = {name: value for name, value in options.items() if value is not None}
    device = None if generator is None else generator.device
    seeds = torch.randint(2**63 - 1, (len(items),), generator=generator, device=device).tolist()
    results = []
    for first in range(0, len(items), MAX_PAINTED):
        batch = embeddings[first : first + MAX_PAINTED]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[first : first + MAX_PAINTED]]
        repeated = None if unwanted is None else unwanted.expand(len(batch), -1)
        results.extend(decoder.decode(batch, repeated, generators=generators, **options).cpu().numpy())
    return results


def is_audio(codec: Any) -> bool:
    return getattr(codec.config, "sampling_rate", None) is not None


def _kind(codec: Any) -> str:
    """Which dialect a codec speaks; models of diffusers have no model_type."""
    return getattr(codec.config, "model_type", type(codec).__name__)


def _encode_batch(codec: Any, values: torch.Tensor) -> torch.Tensor:
    """Equal items `[B, ...]` -> codes `[B, K, T]`."""
    kind = _kind(codec)
    with torch.inference_mode():
        if kind == "encodec":
            _check_encodec(codec)
            # The highest bandwidth gives all codebooks; fewer are its first ones, because they are residual.
            bandwidth = max(codec.config.target_bandwidths)
            return codec.encode(values[:, None], bandwidth=bandwidth).audio_codes[0]
        if kind == "VQModel":
            _, _, (_, _, indices) = codec.quantize(codec.encode(values).latents)
            return indices.reshape(len(values), 1, -1)  # row by row
        return codec.encode(values)


def _decode_batch(codec: Any, codes: torch.Tensor) -> torch.Tensor:
    """Codes `[B, K, T]` -> equal items `[B, ...]`."""
    kind = _kind(codec)
    with torch.inference_mode():
        if kind == "encodec":
            _check_encodec(codec)
            return codec.decode(codes[None], [None]).audio_values[:, 0]
        if kind == "VQModel":
            batch, _, count = codes.shape
            shape = (batch, math.isqrt(count), math.isqrt(count), codec.quantize.vq_embed_dim)
            return codec.decode(codes.reshape(-1), force_not_quantize=True, shape=shape).sample
        return codec.decode(codes)


def _check_encodec(codec: Any) -> None:
    config = codec.config
    if config.normalize or config.chunk_length_s is not None or config.audio_channels != 1:
        raise ValueError(
            "Got an EncodecModel that normalises, chunks or is stereo (48 kHz): its codes alone don't hold the "
            "sound. Use a mono one with normalize=False and chunk_length_s=None (24 or 32 kHz)."
        )


def _samples_per_frame(codec: Any) -> int:
    # Not from the frame rate of an EncodecConfig, which is rounded up to whole Hz.
    if _kind(codec) == "encodec":
        return codec.config.hop_length
    return round(codec.config.sampling_rate / codec.config.frame_rate)


def _to_device(codec: Any, batch: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(batch).to(codec.device, codec.dtype)


def _by_length(run: Callable[[np.ndarray], np.ndarray], items: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Runs batches of items of equal shape; results in the order of the items."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(item.shape, []).append(index)
    results: list[Any] = [None] * len(items)
    for indices in groups.values():
        for first in range(0, len(indices), MAX_BATCH):
            batch = indices[first : first + MAX_BATCH]
            for index, result in zip(batch, run(np.stack([items[i] for i in batch])), strict=True):
                results[index] = result
    return results


def _in_pieces(
    codec: Any,
    run: Callable[[np.ndarray], np.ndarray],
    items: Sequence[np.ndarray],
    unit_in: int,
    unit_out: int,
    whole: bool = False,
) -> list[np.ndarray]:
    """As `_by_length`; items longer than a piece go through one piece at a time, with context on both sides (`whole`:
    one item at a time).

    The last axis is time; a frame is `unit_in` steps of it before and `unit_out` steps after. Pieces start at whole
    frames, so that their codes fall on the same grid as those of the whole.
    """
    frame_rate = codec.config.sampling_rate / _samples_per_frame(codec)
    piece, context = round(CHUNK_SECONDS * frame_rate), round(CONTEXT_SECONDS * frame_rate)
    limit = (piece + 2 * context) * unit_in
    short = [index for index, item in enumerate(items) if item.shape[-1] <= limit]
    results: list[Any] = [None] * len(items)
    for index, result in zip(short, _by_length(run, [items[i] for i in short]), strict=True):
        results[index] = result
    for index, item in enumerate(items):
        if results[index] is None and whole:
            results[index] = run(item[None])[0]
        elif results[index] is None:
            frames = -(-item.shape[-1] // unit_in)
            outputs = []
            for start in range(0, frames, piece):
                first, last = max(0, start - context), min(frames, start + piece + context)
                output = run(item[None, ..., first * unit_in : last * unit_in])[0]
                end = start + piece if start + piece < frames else None
                cut = slice((start - first) * unit_out, None if end is None else (end - first) * unit_out)
                outputs.append(output[..., cut])
            results[index] = np.concatenate(outputs, axis=-1)
    return results
