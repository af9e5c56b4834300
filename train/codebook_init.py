"""First embeddings of the code tokens, from the codecs' own codebooks. Part of make_tiny_data.py's `model` step.

Codes that sound or look alike have codebook vectors that lie close together. A language model that starts there needs
not find out from data which of a thousand speech codes are the same phone; one that starts from noise does.
"""

from pathlib import Path

import numpy as np
import torch
from make_codec_data import PHONES
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM

SPREAD = 0.02  # root mean square of transformers' first embeddings (initializer_range)


def initialise(config, codecs: Path, seed: int = 0):
    """A new model of `config` whose code embeddings come from the codec folders under `codecs`."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    table = model.get_input_embeddings().weight
    rng = np.random.default_rng(seed)
    vectors = codebook_vectors(codecs)
    with torch.no_grad():
        for spec in config.modalities:
            for codebook, features in enumerate(vectors[spec.name]):
                start = spec.token_id(0, codebook)
                rows = project(features, table.shape[1], rng)
                table[start : start + spec.codebook_size] = torch.from_numpy(rows).to(table.dtype)
    return model


def codebook_vectors(codecs: Path) -> dict[str, list[np.ndarray]]:
    """Modality -> a feature matrix [codes, features] for every codebook that the language model sees."""
    phones, level1 = speech_codebook(codecs)
    (music,) = weights(codecs / "music_codec/model.safetensors", "quantizer.codebooks")
    (image,) = weights(codecs / "image_codec/diffusion_pytorch_model.safetensors", "quantize.embedding.weight")
    joined = np.concatenate([standardise(phones.sqrt().numpy()), standardise(level1.numpy())], axis=1)
    return {"speech": [joined], "music": [book.numpy() for book in music], "image": [image.numpy()]}


def speech_codebook(codecs: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each speech code of level 1: probabilities of the phones [codes, 40], and its vector [codes, D]."""
    names = ("quantizer.vq.layers.0._codebook.embed", "transform.weight", "transform.bias")
    level1, weight, bias = weights(codecs / "speech_codec/model.safetensors", *names)
    logits = level1 @ weight.T + bias  # the first are those of the phones (train/codec_speech.py)
    return logits[:, : len(PHONES)].softmax(-1), level1


def weights(path: Path, *names: str) -> list[torch.Tensor]:
    """Tensors of a safetensors file, as float32; ValueError if it lacks one of them."""
    try:
        with safe_open(path, "pt") as file:
            return [file.get_tensor(name).float() for name in names]
    except SafetensorError as error:
        raise ValueError(f"{path} is not the codec that is expected here: {error}") from error


def standardise(features: np.ndarray) -> np.ndarray:
    """Centred, with rows of mean square length 1."""
    features = features - features.mean(0)
    return features / np.sqrt((features**2).sum(1).mean())


def project(features: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """Principal directions of `features` turned at random into `width` dimensions: float32 [codes, width]."""
    u, s, _ = np.linalg.svd(standardise(features), full_matrices=False)
    kept = min(width, len(s))
    turn, _ = np.linalg.qr(rng.standard_normal((width, width)))
    rows = (u[:, :kept] * s[:kept]) @ turn[:kept]
    rows *= SPREAD / np.sqrt((rows**2).mean())
    return (rows + 0.2 * SPREAD * rng.standard_normal(rows.shape)).astype(np.float32)
