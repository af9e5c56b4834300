"""Tensors of files that torch or safetensors wrote, without running what else a file may hold.

A pickle is a program. Only the part that makes tensors is run (`weights_only=True`); a file that asks for more is
refused. Tensors are memory-mapped: nothing is read before it is used.
"""

import pickle
import re
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel

# What stands at the beginning of a file that was not downloaded right, and what to say of it.
IMPOSTORS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself: run `git lfs pull`, or download it again",
    b"<!doctype html": "is a web page, not weights: the download failed, perhaps for want of a login",
    b"<html": "is a web page, not weights: the download failed, perhaps for want of a login",
}


def check_file(path: str | Path) -> Path:
    """The path, if there is a file that could hold weights. Raises ValueError otherwise."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file of weights.")
    if not path.is_file():
        raise ValueError(f"No such file: {path}.")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise ValueError(f"{path} is empty. Download it again.")
    for start, verdict in IMPOSTORS.items():
        if head.lstrip().lower().startswith(start):
            raise ValueError(f"{path} {verdict}.")
    return path


def read_pickle(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors by name of a file that `torch.save` wrote, on the CPU, memory-mapped where the format allows.

    Raises:
        ValueError: no such file, cut off, not weights (a web page, safetensors, code), or weights in another shape
            than one flat dict.
    """
    path = check_file(path)
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:9] == b"{":
        raise ValueError(f"{path} looks like safetensors, expected a file that torch.save wrote.")
    is_zip = zipfile.is_zipfile(path)
    if head.startswith(b"PK") and not is_zip:
        raise ValueError(f"{path} is cut off: the end of the archive is missing. Download it again.")
    try:
        # Files from before torch 1.6 are no archives and cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    # torch's own messages are not passed on: they advise to load the file without protection.
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        code = f"code ({named[1]})" if named else "more than weights, or no weights at all"
        raise ValueError(f"{path} holds {code} and is refused: loading it could run anything.") from error
    except Exception as error:  # on arbitrary bytes the unpickler fails in arbitrary ways
        raise ValueError(f"{path} is damaged or not a file of weights from torch.save. Download it again.") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        found = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} is not a flat dict of tensors, found: {found}.")
    return dict(content)


def read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors by name of a safetensors file, on the CPU, memory-mapped. Raises ValueError as `read_pickle`."""
    path = check_file(path)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is cut off or not safetensors ({str(error).splitlines()[0]}). Download it again."
        ) from error


def check_tensors(tensors: dict[str, torch.Tensor], shapes: dict[str, torch.Size], what: str) -> None:
    """Raise a ValueError that lists them when `tensors` has other names or shapes than `shapes`."""
    missing, unknown = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
    other = [key for key in sorted(shapes.keys() & tensors.keys()) if shapes[key] != tensors[key].shape]
    if not (missing or unknown or other):
        return
    problems = [
        f"{len(names)} {kind} ({some(names)})" for kind, names in (("missing", missing), ("unknown", unknown)) if names
    ]
    if other:
        first = other[0]
        problems.append(
            f"{len(other)} of another shape ({first} is {list(tensors[first].shape)}, expected {list(shapes[first])})"
        )
    raise ValueError(f"{what}: of {len(shapes)} tensors {', '.join(problems)}.")


def some(names: list[str]) -> str:
    """The first few names; all of a thousand missing tensors would hide the message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def meta_shapes(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> dict[str, torch.Size]:
    """Names and shapes of the tensors of a model, which is built without memory for them."""
    try:
        with torch.device("meta"):
            model = model_class(config)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"No {model_class.__name__} can be built with this configuration: {error}.") from error
    return {key: value.shape for key, value in model.state_dict().items()}


def build(model_class: type[PreTrainedModel], config: PreTrainedConfig, tensors: dict) -> PreTrainedModel:
    """A model with copies of `tensors` in float32, in eval mode. All of its tensors must be among them."""
    with torch.device("meta"):
        model = model_class(config)
    copies = {key: value.to(torch.float32, copy=True) for key, value in tensors.items()}
    model.load_state_dict(copies, assign=True)
    return model.eval()
