"""`anygpt export`: the language model as its backbone's own architecture (`LlamaForCausalLM`, ...), for others.

The keys of the weights are the backbone's already, so an export is a change of config.json: shards are copied byte for
byte, one at a time. Only with a LoRA adapter is the model loaded, in its own precision, to write the merged weights.

What is left behind: the modality table, the codecs, the grammar and its sampling presets per modality. A program that
runs the export has to put codes into prompts and read them from replies itself (`anygpt encode`, `anygpt decode`).

`plain` and `vllm` differ in generation_config.json alone. vLLM takes `max_new_tokens` there for a limit that no
request can exceed (`generation_config` in its vllm/config/model.py), so `vllm` leaves out how long a reply may be.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import processing_anygpt  # noqa: F401  registers the classes with transformers
from modeling_anygpt import AnyGPTConfig, check_compatible

from . import media
from .engine import whole
from .progress import step

# What transformers writes for a tokenizer, in its present and older forms.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
LENGTHS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens")


def export(folder: str, out: str, target: str = "plain", adapter: str | None = None, quiet: bool = False) -> str:
    """Writes the backbone of the AnyGPT checkpoint `folder` to the new folder `out`.

    Args:
        target: "plain" or "vllm", see above.
        adapter: folder of a LoRA adapter (PEFT) that was trained on this checkpoint; merged into the weights.
        quiet: no progress on standard error.

    Returns:
        What was written, in one line.

    Raises:
        ValueError: `out` exists; `folder` is no whole AnyGPT checkpoint; the adapter does not fit it.
    """
    media.model_config(folder)
    folder = Path(folder)
    if not has_tokenizer(folder):
        raise ValueError(f"{folder} has no tokenizer. Put its files there.")
    with whole(folder):
        config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    check_compatible(config, tokenizer)
    plain = plain_config(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(plain)
    stored = revert_weight_conversion(model, model.state_dict())  # mixtures of experts are stored one by one
    shapes = {key: tuple(value.shape) for key, value in stored.items()}
    plain.dtype = check_weights(folder, shapes, plain.tie_word_embeddings)
    with media.new_folder(out) as temporary:
        if adapter is None:
            plain.save_pretrained(temporary)
            with step("copying the weights", quiet):
                for path in weight_files(folder):
                    shutil.copyfile(path, temporary / path.name)
                index = folder / "model.safetensors.index.json"
                if index.exists():
                    shutil.copyfile(index, temporary / index.name)
        else:
            with step("merging the adapter", quiet):
                merged = merge(folder, adapter)
                # The stock class around our modules: it saves them under the same keys, with its own config.
                model.model, model.lm_head = merged.model, merged.lm_head
                model.save_pretrained(temporary)
        write_tokenizer(folder, temporary)
        write_generation_config(folder, temporary, config, target)
    megabytes = sum(path.stat().st_size for path in weight_files(Path(out))) / 1e6
    return f"{out}: {plain.architectures[0]}, {plain.vocab_size:,} rows of vocabulary, {megabytes:,.1f} MB of weights"


def plain_config(config: AnyGPTConfig):
    """The backbone's config as its own causal language model saves it."""
    plain = config.text_config
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(plain.model_type)
    if architecture is None:
        raise ValueError(f"transformers has no causal language model for the backbone {plain.model_type!r}.")
    plain.architectures = [architecture]
    plain.eos_token_id, plain.pad_token_id = config.eos_token_id, config.pad_token_id
    return plain


def weight_files(folder: Path) -> list[Path]:
    """The shards of a checkpoint folder.

    Raises:
        ValueError: the folder has no safetensors weights, or lacks a shard.
    """
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        paths = [folder / "model.safetensors"]
    else:
        try:
            paths = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{index} is not an index of shards.") from None
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}. Only whole checkpoints in safetensors are read.")
    return paths


def check_weights(folder: Path, shapes: dict[str, tuple], tied: bool) -> torch.dtype:
    """Compares keys and shapes of the files with those of the model; returns the dtype of the embedding.

    Raises:
        ValueError: names what differs, or the file that is cut short.
    """
    found, dtype = {}, None
    for path in weight_files(folder):
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():
                    found[key] = tuple(file.get_slice(key).get_shape())
                    if key == "model.embed_tokens.weight":
                        dtype = file.get_slice(key)[:1].dtype
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}.") from None
    optional = {"lm_head.weight"} if tied else set()
    wrong = sorted(key for key in (set(shapes) | set(found)) - optional if shapes.get(key) != found.get(key))
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"{folder}: {len(wrong)} tensors are not those of its config.json, {key!r} first: shape {found.get(key)}, "
            f"needs {shapes.get(key)}. Weights and config come from different checkpoints."
        )
    return dtype


def merge(folder: Path, adapter: str):
    """The AnyGPT model with the adapter in its weights.

    Raises:
        ValueError: no adapter there, one that can't be merged, or one of another model.
        ImportError: PEFT is not installed.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError:
        raise ImportError("--adapter needs PEFT: pip install peft") from None
    adapter = Path(adapter)
    weights = adapter / "adapter_model.safetensors"
    if not (adapter / "adapter_config.json").is_file() or not weights.is_file():
        raise ValueError(f"{adapter} holds no adapter: needs adapter_config.json and adapter_model.safetensors.")
    with whole(adapter):
        config = PeftConfig.from_pretrained(adapter)
    if config.is_prompt_learning:
        raise ValueError(f"{adapter} is of type {config.peft_type.value}, which no weights can hold. Use a LoRA.")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    try:
        tuned = PeftModel.from_pretrained(model, adapter)
        given, taken = adapter_tensors(tuned, weights)
    except (RuntimeError, KeyError, SafetensorError) as error:  # shapes differ, or the file is cut short
        raise ValueError(f"{adapter} is not an adapter of {folder}: {error}") from None
    if given != taken:
        raise ValueError(
            f"{adapter} is not an adapter of {folder}: {len(given - taken)} of its {len(given)} tensors find no "
            f"place, {len(taken - given)} are missing, for example {min(given ^ taken)!r}."
        )
    return tuned.merge_and_unload()


def adapter_tensors(tuned, weights: Path) -> tuple[set[str], set[str]]:
    """Names of the tensors in an adapter's file, and of those that the model with the adapter has. Where they differ
    PEFT only warns, and goes on without."""
    from peft import get_peft_model_state_dict

    with safe_open(weights, "pt") as file:
        return set(file.keys()), set(get_peft_model_state_dict(tuned))


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a vocabulary. Of one that doesn't transformers makes something, or fails."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def write_tokenizer(folder: Path, out: Path) -> None:
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    path = out / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for key in ("processor_class", "auto_map"):  # classes of this package
        settings.pop(key, None)
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_generation_config(folder: Path, out: Path, config: AnyGPTConfig, target: str) -> None:
    """The settings that transformers itself knows; without a file of the checkpoint, its special ids."""
    path = folder / "generation_config.json"
    settings = {"eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
    if path.is_file():
        known = set(vars(GenerationConfig())) | {"transformers_version"}
        settings = {key: value for key, value in json.loads(path.read_text()).items() if key in known}
    if target == "vllm":
        settings = {key: value for key, value in settings.items() if key not in LENGTHS}
    (out / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")
