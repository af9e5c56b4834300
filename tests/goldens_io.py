"""Reads tests/goldens/<name>/goldens.npz: official inputs and outputs, and the weights that gave them."""

import json
from pathlib import Path

import numpy as np
import torch

GOLDENS = Path(__file__).parent / "goldens"


def read_json(name: str, file: str) -> dict:
    return json.loads((GOLDENS / name / file).read_text())


def load_goldens(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """-> tensors by name (codes as int64), state dict.

    The float32 weights are kept as four planes of bytes, the low six bits zero, because that compresses.
    """
    arrays = dict(np.load(GOLDENS / name / "goldens.npz"))
    flat = torch.from_numpy(np.ascontiguousarray(arrays.pop("planes").T).view(np.float32)[:, 0])
    shapes = json.loads(str(arrays.pop("shapes")))
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    weights = {key: v.view(shape) for (key, shape), v in zip(shapes.items(), flat.split(sizes), strict=True)}
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    return {key: v.long() if v.dtype == torch.uint8 else v for key, v in tensors.items()}, weights
