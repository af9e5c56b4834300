"""The codecs of a checkpoint: found, loaded when first needed, saved with their code."""

import importlib
import inspect
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import AutoModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from .files import write_text

# What a repository on the hub holds besides what is used: other formats and precisions, and the image encoder of a
# pipeline that gets embeddings.
NOT_FETCHED = ("*.ckpt", "*/*.bin", "*.fp16.*", "image_encoder/*")
PIPELINE_INDEX = "model_index.json"  # in the folder of a pipeline of diffusers, in place of config.json


class CodecShelf:
    """Loaded codecs, and where to load more from. Copies and pickles without the models: they are loaded again."""

    def __init__(self, source: str | None = None, options: dict[str, Any] | None = None):
        self.source = source  # folder or hub id of the checkpoint
        self.options = options or {}  # of from_pretrained: subfolder, revision, token, trust_remote_code, ...
        self.device = torch.device("cpu")
        self.models: dict[str, Any] = {}
        self.own: set[str] = set()  # names put here by hand: they replace those of the checkpoint

    def __deepcopy__(self, memo: dict) -> "CodecShelf":
        return CodecShelf(self.source, self.options)

    def __reduce__(self):
        return CodecShelf, (self.source, self.options)

    def get(self, name: str) -> Any:
        """The codec in subfolder or hub repository `name`, on `device`: in float32, but pipelines as they do best."""
        if name not in self.models:
            folder = self.locate(name)
            if (folder / PIPELINE_INDEX).is_file():
                self.models[name] = self._pipeline_class(folder).load(folder, self.device)
                return self.models[name]
            library_class = json.loads((folder / "config.json").read_text()).get("_class_name")
            if library_class is not None:  # a model of diffusers, which has no Auto class for all of them
                diffusers_class = getattr(importlib.import_module("diffusers"), library_class)
                # Else diffusers advises on standard error to install accelerate, for models a thousand times as large.
                model = load_whole(diffusers_class, folder, low_cpu_mem_usage=False)
            else:
                trust = self.options.get("trust_remote_code", False)
                model = load_whole(AutoModel, folder, trust_remote_code=trust, dtype=torch.float32)
            self.models[name] = model.eval().to(self.device)
        return self.models[name]

    def locate(self, name: str) -> Path:
        """The local folder of a codec; one on the hub is downloaded."""
        options = {key: self.options[key] for key in ("cache_dir", "local_files_only", "token") if key in self.options}
        if "/" in name:
            if Path(name).is_dir():
                return Path(name)
            return Path(snapshot_download(name, ignore_patterns=list(NOT_FETCHED), **options))
        if self.source is None:
            raise ValueError(
                f"Codec {name!r} is a subfolder of a checkpoint, but this processor was not loaded from one. Use "
                "AnyGPTProcessor.from_pretrained(folder), or set_codec(modality, codec)."
            )
        folder = Path(self.source)
        inside = (Path(self.options.get("subfolder") or "") / name).as_posix()
        if not folder.is_dir():
            revision = self.options.get("revision")
            folder = Path(snapshot_download(self.source, revision=revision, allow_patterns=[f"{inside}/*"], **options))
        if not (folder / inside).is_dir():
            raise ValueError(
                f"Checkpoint {self.source} has no codec folder {inside!r}. Download it whole, or change the modality "
                "table in processor_config.json."
            )
        return folder / inside

    def put(self, name: str, model: Any) -> None:
        """Uses `model` under `name` instead of the checkpoint's."""
        self.models[name] = model
        self.own.add(name)

    def has(self, name: str) -> bool:
        """Whether `get` would find a codec. Of a checkpoint on the hub that downloads it."""
        if name in self.models:
            return True
        try:
            return self.source is not None and self.locate(name).is_dir()
        except (ValueError, OSError):  # no such folder there, or no network
            return False

    def save(self, name: str, folder: Path) -> None:
        """Puts the codec `name` into `folder`, with the code that loads it there."""
        if name in self.own:
            self.models[name].save_pretrained(folder)
        else:
            original = self.locate(name)
            if original.resolve() != folder.resolve():
                shutil.copytree(original, folder, dirs_exist_ok=True)  # as stored: in its precision, with its notes
        if (folder / PIPELINE_INDEX).is_file():  # need not be loaded to be copied
            _copy_code(type(self.models[name]) if name in self.own else self._pipeline_class(folder), folder)
            return
        model = self.get(name)
        if not type(model).__module__.startswith(("transformers.", "diffusers.")):
            # register_for_auto_class would do this, but takes every class with "Tokenizer" in its name for one.
            module = _copy_code(type(model), folder)
            config = json.loads((folder / "config.json").read_text())
            config["auto_map"] = {
                "AutoConfig": f"{module}.{type(model.config).__name__}",
                "AutoModel": f"{module}.{type(model).__name__}",
            }
            write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")

    def _pipeline_class(self, folder: Path) -> Any:
        """`UnclipDecoder`: of the code that `save` put into a folder, for where the package is not, or its own."""
        if self.options.get("trust_remote_code") and (folder / "unclip.py").is_file():
            return get_class_from_dynamic_module("unclip.UnclipDecoder", str(folder))
        return importlib.import_module("modeling_anygpt.codecs.unclip").UnclipDecoder


def _copy_code(kind: type, folder: Path) -> str:
    """Puts the file of a class into `folder`; returns its module's name there."""
    module = Path(inspect.getfile(kind))
    if module.resolve() != (folder / module.name).resolve():
        shutil.copyfile(module, folder / module.name)
    return module.stem


def load_whole(kind: Any, folder: str | os.PathLike, **options) -> Any:
    """`kind.from_pretrained`; ValueError if the weights lack a tensor, or hold one of another shape."""
    try:
        model, report = kind.from_pretrained(folder, output_loading_info=True, **options)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder} does not hold the weights of its config.json: {error}") from error
    refuse_missing(report, folder)
    return model


def refuse_missing(report: dict, name: str | os.PathLike) -> None:
    """ValueError if `from_pretrained` found no weights for some tensors: transformers draws those at random.

    Args:
        report: its `output_loading_info`.
        name: of what was loaded, to begin the message.
    """
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{name} lacks {len(missing)} of its tensors, {missing[0]} first. Give it whole.")
