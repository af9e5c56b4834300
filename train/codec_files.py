"""What the training scripts of the codecs read and write: arrays, trained codecs, the result."""

import json
import os
import shutil
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from processing_anygpt.codec_shelf import load_whole


def read_arrays(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays of an npz file; ValueError if it is none or lacks one of them."""
    try:
        data = np.load(path)
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise ValueError(f"{path} is no npz file. Make it again.") from error
    if not isinstance(data, np.lib.npyio.NpzFile):
        raise ValueError(f"{path} holds one array, allowed: an npz file with {', '.join(names)}.")
    with data:
        missing = [name for name in names if name not in data]
        if missing:
            raise ValueError(f"{path} has no array {missing[0]!r}; it holds {', '.join(data) or 'nothing'}.")
        return [data[name] for name in names]


def read_array(path: Path) -> np.ndarray:
    """The array of an npy file; ValueError if it is none."""
    try:
        array = np.load(path)
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise ValueError(f"{path} is no npy file. Make it again.") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} holds several arrays, allowed: an npy file with one.")
    return array


def load_codec(kind: type[PreTrainedModel], source: str | Path) -> PreTrainedModel:
    """A trained codec of this class, float32, without gradients; ValueError if that is something else."""
    config = AutoConfig.from_pretrained(source)
    if not isinstance(config, kind.config_class):
        raise ValueError(f"{source} holds a model of type {config.model_type!r}, allowed: a {kind.__name__}.")
    return load_whole(kind, source, dtype=torch.float32).eval().requires_grad_(False)


@contextmanager
def whole_files(folder: Path):
    """Yields a temporary folder; what it holds at the end moves into `folder`; after an error nothing does."""
    temporary = Path(tempfile.mkdtemp(prefix=".", dir=folder))
    try:
        yield temporary
        for path in temporary.iterdir():
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def export(model: nn.Module, folder: Path) -> None:
    """A transformers model as a `from_pretrained` folder: float16 on disk; the config says float32, so that
    `from_pretrained` widens the weights."""
    half = {name: tensor.detach().cpu().half() for name, tensor in model.state_dict().items()}
    broken = [name for name, tensor in half.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"{broken[0]} ({len(broken)} such) holds NaN or infinity; {folder} was not written.")
    with whole_files(folder) as temporary:
        model.save_pretrained(temporary, state_dict=half)
        config = json.loads((temporary / "config.json").read_text()) | {"dtype": "float32"}
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
