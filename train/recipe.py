"""What the training scripts share: keys of a recipe beside TRL's, its model and adapters, the output folder."""

import dataclasses
import json
import os
import shutil
import sysconfig
import tempfile
import zipfile
from dataclasses import dataclass, field
from enum import Enum
from importlib.util import find_spec
from pathlib import Path

import row_attention
import torch
import transformers
import yaml
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from settings import read_yaml_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

import processing_anygpt  # noqa: F401  registers AnyGPT with the Auto classes
from modeling_anygpt import AnyGPTConfig
from processing_anygpt.files import write_text
from processing_anygpt.rows import fingerprint

FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
ATTENTIONS = ("sdpa", "eager", row_attention.NAME, "flex_attention", *FLASH)
# Keys of the TRL configs that the scripts set themselves, and why or what to use instead.
OWNED = {
    "model_init_kwargs": "use model, dtype and attn_implementation",
    "resume_from_checkpoint": "use resume",
    "num_train_epochs": "use max_steps",
    "gradient_checkpointing": "use checkpointing",
    "activation_checkpointing": "use checkpointing",
    "use_liger_kernel": "use liger",
    "torch_compile": "use compile",
    "torch_compile_backend": "use compile",
    "packing": "rows are always packed",
    "packing_strategy": "rows are always packed best-fit",
    "eval_packing": "rows are always packed",
    "padding_free": "there is no padding",
    "dataset_kwargs": "rows are read as they are",
    "dataset_text_field": "rows are ids already, see train/prepare_data.py",
    "shuffle_dataset": "rows are always shuffled, by seed",
    "train_sampling_strategy": "rows are always shuffled, by seed",
    "remove_unused_columns": "the columns are known",
    "completion_only_loss": "use learn",
    "assistant_only_loss": "use learn",
    "fsdp": "use accelerate launch --config_file train/configs/accelerate_fsdp2.yaml",
    "fsdp_config": "use accelerate launch --config_file train/configs/accelerate_fsdp2.yaml",
    "deepspeed": "use accelerate launch --config_file train/configs/accelerate_zero3.yaml",
}

# Keys of a recipe that don't change what is learned, and keys of the TRL configs that do.
NEUTRAL = ("resume", "export_dtype", "data_cache", "heldout", "heldout_rows", "heldout_pairs", "checkpointing")
DECISIVE = (
    "seed", "max_length", "max_steps", "pad_to_multiple_of", "bf16", "fp16", "optim", "optim_args", "learning_rate",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2",
    "adam_epsilon", "max_grad_norm", "label_smoothing_factor", "neftune_noise_alpha", "loss_type",
    "beta", "label_smoothing", "loss_weights", "use_weighting", "ld_alpha", "f_divergence_type", "sync_ref_model",
)  # fmt: skip


@dataclass(kw_only=True)
class ModelRecipe:
    """Keys of every trainer."""

    model: str = field(metadata={"help": "folder of the AnyGPT checkpoint that training starts from"})
    from_scratch: bool = field(default=False, metadata={"help": "random weights of that checkpoint's shape"})
    dtype: str = field(default="float32", metadata={"help": "of the weights: float32 or bfloat16; autocast is --bf16"})
    attn_implementation: str = field(default="sdpa", metadata={"help": ", ".join(ATTENTIONS)})
    liger: bool = field(default=False, metadata={"help": "Liger's kernels in the layers (a GPU)"})
    compile: str | None = field(
        default=None, metadata={"help": "backend that compiles each decoder layer, for example inductor"}
    )
    checkpointing: str = field(
        default="auto", metadata={"help": "recompute activations in the backward pass: on, off, or auto (by memory)"}
    )
    lora_r: int = field(default=0, metadata={"help": "rank of LoRA; 0 trains all weights"})
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_targets: str = field(default="all-linear", metadata={"help": "modules with adapters, separated by commas"})
    lora_vocabulary: str = field(
        default="frozen",
        metadata={
            "help": "frozen: this checkpoint knows its codes; rows: train the embedding and head rows of codes and "
            "markers; all: train both matrices"
        },
    )
    export_dtype: str | None = field(default=None, metadata={"help": "of the saved model; default: as trained"})
    resume: bool = field(default=False, metadata={"help": "go on from the last checkpoint in output_dir"})

    def __post_init__(self):
        """Raises ValueError on a value that can't be, before anything is loaded."""
        allowed = {
            "dtype": ("float32", "bfloat16"),
            "export_dtype": (None, "float32", "bfloat16"),
            "attn_implementation": ATTENTIONS,
            "lora_vocabulary": ("frozen", "rows", "all"),
            "checkpointing": ("auto", "on", "off"),
        }
        for key, values in allowed.items():
            if getattr(self, key) not in values:
                choices = ", ".join(str(value) for value in values)
                raise ValueError(f"{key}: got {getattr(self, key)!r}, allowed: {choices}.")
        if self.attn_implementation in FLASH and not torch.cuda.is_available():
            raise ValueError(f"attn_implementation: {self.attn_implementation} needs a GPU. On a CPU use sdpa.")
        if self.compile:
            check_backend(self.compile)
        if self.lora_r < 0 or (self.lora_vocabulary != "frozen" and not self.lora_r):
            raise ValueError(
                f"lora_r: got {self.lora_r} with lora_vocabulary: {self.lora_vocabulary}. Without LoRA (lora_r: 0) "
                "all weights are trained; leave lora_vocabulary out."
            )
        if self.from_scratch and self.lora_r:
            raise ValueError("from_scratch: an adapter needs a trained base. Leave lora_r out.")


def check_backend(compile: str) -> None:
    """Raises ValueError if torch can't compile with it; its own errors come late, and as tracebacks."""
    backends = torch.compiler.list_backends(exclude_tags=())
    if compile not in backends:
        usual = ", ".join(torch.compiler.list_backends())
        raise ValueError(f"compile: got {compile!r}, allowed: {usual}.")
    needed = {
        os.environ.get("CXX", "g++"): shutil.which(os.environ.get("CXX", "g++")),
        "Python.h": Path(sysconfig.get_path("include"), "Python.h").is_file(),
    }
    missing = [name for name, found in needed.items() if not found]
    if compile == "inductor" and missing and not torch.cuda.is_available():
        raise ValueError(
            f"compile: on a CPU inductor needs a C++ compiler and Python's headers, and there is no {missing[0]}. "
            "Install it, or leave compile out."
        )


@dataclass
class TrainingDefaults:
    """Before a TRL config in the list of bases: other defaults, and no silent change of what the scripts rely on."""

    # A pack is a batch: more of them in one pass make one long row, whose mask sdpa writes out.
    per_device_train_batch_size: int = 1
    per_device_eval_batch_size: int = 1
    bf16: bool = field(default=False, metadata={"help": "autocast to bfloat16"})
    logging_nan_inf_filter: bool = False  # it would log a loss of 0
    gradient_checkpointing: bool = False

    def __post_init__(self):
        for key, instead in OWNED.items():
            fields = {f.name: f for f in dataclasses.fields(self)}
            if key in fields and getattr(self, key) != default_of(fields[key]):
                raise ValueError(f"{key} is set by this script: {instead}.")
        if not self.use_cpu and not torch.accelerator.is_available():
            raise ValueError("torch sees no GPU. Install a GPU build of torch and a driver, or add --use_cpu.")
        for name in [self.report_to] if isinstance(self.report_to, str) else self.report_to or []:
            if name in ("tensorboard", "trackio", "wandb") and find_spec(name) is None:
                raise ValueError(f"report_to: {name} is not installed. pip install {name}, or leave report_to out.")
        if self.max_steps < 1:
            raise ValueError("max_steps is missing: how many steps to train. A mixture has no end of its own.")
        for key in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: got {getattr(self, key)}, allowed: 1 or more.")
        if not 0 <= self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate: got {self.learning_rate}, allowed: 0 or more.")
        super().__post_init__()
        padding = self.pad_to_multiple_of  # a number only now: TRL takes a string too
        if padding is not None and padding < 1:
            raise ValueError(f"pad_to_multiple_of: got {padding}, allowed: 1 or more, for example max_length.")


def default_of(f: dataclasses.Field):
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


def load_processor(folder: str):
    """The processor of a checkpoint folder. Raises ValueError if there is none."""
    if not isinstance(folder, str):
        raise ValueError(f"Got {folder!r} for a checkpoint, need the name of a folder.")
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(
            f"{folder} is no checkpoint: it has no config.json. Give a local folder (`hf download NAME --local-dir "
            f"{folder}` fetches one, `anygpt init` makes one)."
        )
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if not isinstance(config, AnyGPTConfig):
        raise ValueError(
            f"{folder} is a {config.model_type!r} checkpoint, not AnyGPT's. Grow it first: anygpt init --backbone "
            f"{folder} OUT"
        )
    return AutoProcessor.from_pretrained(folder, local_files_only=True)


def load_model(recipe: ModelRecipe, seed: int, device: torch.device | str = "cpu"):
    """The model of a recipe; random weights are drawn on `device`, where billions take a second.

    Raises ValueError if weights are missing, left over or of another shape.
    """
    options = {"dtype": getattr(torch, recipe.dtype), "attn_implementation": recipe.attn_implementation}
    if recipe.from_scratch:
        transformers.set_seed(seed)
        config = AutoConfig.from_pretrained(recipe.model, local_files_only=True)
        with torch.device(device):
            return AutoModelForCausalLM.from_config(config, **options)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            recipe.model, local_files_only=True, output_loading_info=True, **options
        )
    except ImportError as error:  # of an attention kernel
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"{first} pip install -e '.[flash]', or attn_implementation: sdpa.") from error
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"{recipe.model} has no usable weights: {first} (from_scratch: true starts anew)") from error
    wrong = [str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[kind]]
    if wrong:
        raise ValueError(
            f"The weights of {recipe.model} do not fit its config.json: {wrong[0]} ({len(wrong)} in all). Convert or "
            "download it again."
        )
    return model


def speed_up(model, recipe: ModelRecipe, config) -> None:
    """Liger's kernels and compilation, in place. Both act on the backbone's layers: TRL computes the loss itself."""
    if recipe.liger:
        if not is_liger_kernel_available():
            raise ValueError("liger: liger-kernel is not installed. pip install liger-kernel (needs a GPU).")
        # transformers would look up the kernels of a model_type "anygpt".
        apply_liger_kernel(model.model, {"cross_entropy": False, "fused_linear_cross_entropy": False})
    if recipe.compile:
        lengths_differ = None if config.pad_to_multiple_of else True  # None: torch finds out, and compiles twice
        for layer in model.model.layers:  # one graph serves them all, and the keys of the weights stay
            layer.compile(backend=recipe.compile, dynamic=lengths_differ)


def lora_config(recipe: ModelRecipe, config: AnyGPTConfig) -> LoraConfig | None:
    """The adapters of a recipe; None where all weights are trained."""
    if not recipe.lora_r:
        return None
    tied = config.tie_word_embeddings
    matrices = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    # With one list for both PEFT trains the embedding and leaves the head as it is; a tied head follows by itself.
    rows = {name: vocabulary_rows(config) for name in matrices} if recipe.lora_vocabulary == "rows" else None
    return LoraConfig(
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=recipe.lora_targets.split(",") if "," in recipe.lora_targets else recipe.lora_targets,
        trainable_token_indices=rows,
        modules_to_save=matrices if recipe.lora_vocabulary == "all" else None,
        ensure_weight_tying=tied and recipe.lora_vocabulary == "all",
        task_type="CAUSAL_LM",
    )


def vocabulary_rows(config: AnyGPTConfig) -> list[int]:
    """The ids that growing added to the backbone's vocabulary: codes, markers and control tokens."""
    names = ("human", "assistant", "eoh", "eos", "response", "instruction")
    rows = {getattr(config, f"{name}_token_id") for name in names} - {None}
    for spec in config.modalities:
        rows |= {spec.start_token_id, spec.end_token_id}
        rows |= set(range(spec.first_code_id, spec.first_code_id + spec.num_codes))
    return sorted(rows)


def prepare_output(folder: str, resume: bool) -> str | None:
    """Makes sure that `folder` can be written and holds no other run; the checkpoint to go on from, if any.

    A checkpoint whose trainer_state.json is missing was cut off while it was written, and is passed over.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise ValueError(f"output_dir {folder} can't be written: {error.strerror}.") from error
    states = [state for state in path.glob("checkpoint-*/trainer_state.json") if state.parent.name[11:].isdigit()]
    found = sorted(states, key=lambda state: int(state.parent.name[11:]))
    if resume and not found:
        raise ValueError(f"resume: {folder} holds no complete checkpoint. Start without --resume.")
    if not resume and (found or (path / "model").exists()):
        raise ValueError(f"output_dir {folder} holds a run already. Add --resume, or name another folder.")
    if resume:
        check_whole(found[-1].parent)
    return str(found[-1].parent) if resume else None


def check_whole(checkpoint: Path) -> None:
    """Raises a ValueError for a checkpoint with a file that was cut off, as happens when a machine loses its power."""
    for path in checkpoint.iterdir():
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif path.suffix in (".pt", ".pth", ".bin"):  # torch.save writes zip files
                zipfile.ZipFile(path).close()
            elif path.suffix == ".json":
                json.loads(path.read_bytes())
        except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"resume: {path} is damaged ({error}). Remove {checkpoint.name} to go on from the one before it."
            ) from error


def record_settings(recipe: ModelRecipe, config, rows_per_step: int, data: list[Path]) -> None:
    """Writes output_dir/settings.yaml; on resuming, refuses settings that would change what the next step sees.

    Args:
        data: what is trained on: parquet files, or folders of rows, of which the manifest says all.
    """
    decisive = {key: value for key, value in dataclasses.asdict(recipe).items() if key not in NEUTRAL}
    for key in DECISIVE:
        if hasattr(config, key):
            value = getattr(config, key)
            decisive[key] = value.value if isinstance(value, Enum) else value
    if decisive["lr_scheduler_type"].startswith("constant"):
        del decisive["max_steps"]  # more of them change no step before
    manifests = [path / "manifest.json" for path in data if (path / "manifest.json").is_file()]
    files = manifests or [file for path in data for file in (sorted(path.glob("*.parquet")) or [path])]
    decisive |= {"rows_per_step": rows_per_step, "data": fingerprint(files)}
    path = Path(config.output_dir) / "settings.yaml"
    if recipe.resume and path.is_file():
        before = read_yaml_file(path)
        if not isinstance(before, dict):
            raise ValueError(f"resume: {path} holds no settings. Start in another output_dir.")
        for key, value in decisive.items():
            if before.get(key, value) != value:
                raise ValueError(
                    f"resume: {key} was {before[key]!r} when {config.output_dir} was begun and is {value!r} now. "
                    "Resume with the same settings, or start in another output_dir."
                )
    if config.process_index == 0:
        text = yaml.safe_dump(decisive, sort_keys=False, allow_unicode=True)
        write_text(path, text)
