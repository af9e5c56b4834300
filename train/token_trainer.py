"""TRL's SFTTrainer on rows of token ids: sources mixed by rate, packed, with loss and accuracy by modality."""

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import parse_flag_from_env
from budget import needs_checkpointing
from datasets import Dataset, concatenate_datasets
from keeping import Keeper, kept_positions
from merge import save_model, whole_or_nothing
from peft.tuners.lora import LoraLayer
from recipe import (
    ModelRecipe,
    TrainingDefaults,
    load_model,
    load_processor,
    lora_config,
    prepare_output,
    record_settings,
    speed_up,
)
from settings import read_yaml
from token_rows import is_task_list, open_rows, pack_dataset
from trl import SFTConfig, SFTTrainer

from modeling_anygpt import AnyGPTConfig, AnyGPTForCausalLM
from processing_anygpt.packing import PackPlan, best_fit_decreasing


@dataclass(kw_only=True)
class RowsRecipe(ModelRecipe):
    """What the trainers of rows ask for."""

    mixture: str = field(
        metadata={
            "help": "{name: {rows: FOLDER, rate: SHARE OF THE IDS, tasks: [only these], keep: true}}; the last two "
            "may be left out. keep: learn what the model said before, not the labels; a number: as often as that"
        }
    )
    teacher: str | None = field(
        default=None, metadata={"help": "checkpoint that is the model before, for keep; default: without the adapter"}
    )
    heldout: str = field(default="{}", metadata={"help": "{name: {rows: FOLDER}}, evaluated one by one"})
    heldout_rows: int = field(default=200, metadata={"help": "rows of each held-out folder to evaluate on"})
    embedding_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "of the vocabulary's matrices, if others than learning_rate suits them: a smaller one forgets less"
        },
    )
    learn: str = field(default="labels", metadata={"help": "labels: what the rows mark; all: every id"})
    data_cache: str | None = field(default=None, metadata={"help": "folder for memory-mapped copies of the rows"})

    def __post_init__(self):
        super().__post_init__()
        if self.learn not in ("labels", "all"):
            raise ValueError(f"learn: got {self.learn!r}, allowed: labels, all.")
        if self.embedding_learning_rate is not None:
            if not 0 < self.embedding_learning_rate < float("inf"):
                raise ValueError(f"embedding_learning_rate: got {self.embedding_learning_rate}, allowed: above 0.")
            if self.lora_r and self.lora_vocabulary == "frozen":
                raise ValueError(
                    "embedding_learning_rate: the vocabulary is frozen. Add lora_vocabulary: rows or all."
                )
        for key in ("mixture", "heldout"):
            sources = read_yaml(getattr(self, key), key)  # the parser of command lines knows no nested values
            setattr(self, key, sources)
            needed = {"rows", "rate"} if key == "mixture" else {"rows"}
            for name, source in sources.items() if isinstance(sources, dict) else [("", sources)]:
                if not is_source(source, needed):
                    raise ValueError(
                        f"{key} {name}: got {source}, need {', '.join(sorted(needed))}; tasks and (mixture only) keep "
                        "if wanted. rows is a folder, rate a number, tasks a list of names, keep true or a number."
                    )
        if self.heldout_rows < 1:
            raise ValueError(f"heldout_rows: got {self.heldout_rows}, allowed: 1 or more.")
        if self.keeps and not self.lora_r and not self.teacher:
            raise ValueError(
                "mixture: keep needs the model as it was. Add lora_r (an adapter can be switched off) or teacher (a "
                "checkpoint, for example the one that training starts from)."
            )
        if self.teacher and not self.keeps:
            raise ValueError("teacher: no source of the mixture says keep: true, so it would teach nothing.")

    @property
    def keeps(self) -> bool:
        return any(source.get("keep") for source in self.mixture.values())


def is_source(source, needed: set[str]) -> bool:
    """Whether an entry of `mixture` or `heldout` has the keys that it must and may have, and values of their types."""
    allowed = needed | {"tasks"} | ({"keep"} if "rate" in needed else set())
    if not isinstance(source, dict) or not needed <= set(source) <= allowed:
        return False
    types = {"rows": str, "rate": int | float, "tasks": list, "keep": int | float}  # a bool is an int
    fits = all(isinstance(value, types[key]) for key, value in source.items())
    return fits and is_task_list(source.get("tasks", ["all"])) and 0 <= source.get("keep", 0) < float("inf")


@dataclass
class RowsConfig(TrainingDefaults, SFTConfig):
    """TRL's SFTConfig with our defaults."""


class ModalityMeter:
    """Sums loss, hits and ids by modality of the learned id: a forward hook that never waits for the device."""

    def __init__(self, config: AnyGPTConfig):
        self.names = ["text", *(spec.name for spec in config.modalities)]
        self.owner = torch.zeros(config.vocab_size, dtype=torch.long)  # [V] -> place in names
        for number, spec in enumerate(config.modalities, start=1):
            self.owner[spec.first_code_id : spec.first_code_id + spec.num_codes] = number
            self.owner[[spec.start_token_id, spec.end_token_id]] = number
        self.sums = {}  # training? -> [names, 3]: loss, hits, ids

    @torch.no_grad()
    def __call__(self, module, arguments, inputs, output):
        if getattr(output, "is_top1", None) is None:
            return
        mask = output.label_mask
        labels = inputs["labels"][:, 1:].to(mask.device)
        self.owner = self.owner.to(mask.device)
        values = torch.stack([-output.log_probs.float(), output.is_top1.float(), mask.float()], dim=-1)[mask]
        sums = self.sums.setdefault(module.training, torch.zeros(len(self.names), 3, device=mask.device))
        sums.index_add_(0, self.owner[labels[mask]], values)

    def read(self, training: bool, accelerator) -> dict[str, float]:
        """Means since the last reading, over all processes: loss_NAME, accuracy_NAME, and share_NAME of the ids."""
        empty = torch.zeros(len(self.names), 3, device=accelerator.device)
        sums = accelerator.reduce(self.sums.pop(training, empty), "sum").tolist()
        learned = sum(count for _, _, count in sums)
        means = {}
        for name, (loss, hits, count) in zip(self.names, sums, strict=True):
            if count:
                means |= {f"loss_{name}": loss / count, f"accuracy_{name}": hits / count}
                means[f"share_{name}"] = count / learned
        return means


def narrow(embedding, ids, vectors: torch.Tensor) -> torch.Tensor:
    """A forward hook of the embedding. Under autocast the sum that runs past the layers stays float32 as the embedding
    made it, and with it every norm, every addition and the rotation of queries and keys: here it becomes what it is in
    a bfloat16 model. Weights, their gradients and the optimizer stay float32."""
    device = vectors.device.type
    return vectors.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else vectors


class QuietTrainer:
    """Before a TRL trainer in the list of bases: no telemetry, a count of tokens that goes on, no half checkpoint,
    autocast without detours."""

    def _send_telemetry(self):
        """TRL reports every run to the hub. We send nothing unasked."""

    def _prepare_for_training(self, *arguments, **options):
        # TRL starts its count of tokens anew on every run; the log of the run that is resumed knows it.
        counts = [entry["num_tokens"] for entry in self.state.log_history if "num_tokens" in entry]
        self._total_train_tokens = counts[-1] if counts else 0
        return super()._prepare_for_training(*arguments, **options)

    def train(self, *arguments, **options):
        if self.args.bf16:
            self.model.get_input_embeddings().register_forward_hook(narrow)
            # Autocast computes adapters in bfloat16; PEFT would first widen their input to float32, for nothing.
            # (peft.helpers.disable_input_dtype_casting fails on layers of trainable token rows.)
            for module in self.model.modules():
                if isinstance(module, LoraLayer):
                    module.cast_input_dtype_enabled = False
        return super().train(*arguments, **options)

    def _maybe_log_save_evaluate(self, tr_loss, *arguments, **options):
        # Before a checkpoint of such weights takes the place of a good one.
        if (self.control.should_log or self.control.should_save) and not math.isfinite(tr_loss):
            raise ValueError(
                f"At step {self.state.global_step} the loss is {float(tr_loss)}. Lower learning_rate, or set "
                "max_grad_norm; --resume goes on from the last checkpoint."
            )
        super()._maybe_log_save_evaluate(tr_loss, *arguments, **options)

    def _save_checkpoint(self, model, trial):
        with whole_or_nothing(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)


class TokenTrainer(QuietTrainer, SFTTrainer):
    """SFTTrainer that measures loss and accuracy by modality, and lets the vocabulary learn at a pace of its own."""

    def __init__(
        self, *, config: AnyGPTConfig, teacher: AnyGPTForCausalLM | None, embedding_rate: float | None, **arguments
    ):
        super().__init__(**arguments)
        self.embedding_rate = embedding_rate
        self.meter = ModalityMeter(config)
        self.model.register_forward_hook(self.meter, with_kwargs=True)
        self.keeper = Keeper(self.model, teacher, self.meter)
        collate = self.data_collator

        def collate_kept(packs: list[dict]) -> dict:
            batch = collate(packs)
            return batch | kept_positions(packs, batch["input_ids"].shape[1])

        self.data_collator = collate_kept
        head = self.model.get_output_embeddings()
        if not hasattr(head, "bias"):  # PEFT's wrapper of trainable rows, of which TRL reads the bias
            head.bias = None

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        if self.embedding_rate is not None:
            matrices = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
            weights = [weight for matrix in matrices for weight in matrix.parameters()]
            split_off(optimizer, weights, self.embedding_rate)
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        kept = inputs.pop("kept", None)
        if kept is not None and kept.any():
            model = partial(self.keeper, model, kept)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            logs.update(self.keeper.read(self.accelerator))
        prefix = next((key.removesuffix("runtime") for key in logs if key.endswith("_runtime")), "")  # eval_NAME_
        means = self.meter.read(self.model.training, self.accelerator)
        logs.update({prefix + key: value for key, value in means.items()})
        super().log(logs, start_time)


def split_off(optimizer: torch.optim.Optimizer, weights: list[torch.nn.Parameter], learning_rate: float) -> None:
    """Moves what is trained of `weights` to groups of their own, which differ from those left by the learning rate."""
    chosen = {id(weight) for weight in weights}
    for group in list(optimizer.param_groups):
        moved = [weight for weight in group["params"] if id(weight) in chosen]
        group["params"] = [weight for weight in group["params"] if id(weight) not in chosen]
        if moved:
            optimizer.add_param_group(group | {"params": moved, "lr": learning_rate})


def build(recipe: RowsRecipe, config: RowsConfig) -> tuple[TokenTrainer, str | None]:
    """The trainer of a recipe, and the checkpoint to go on from. Wrong settings show here, before any training."""
    if recipe.lora_vocabulary == "rows" and is_sharded(config):
        raise ValueError("lora_vocabulary: PEFT can't train single rows of sharded matrices. Allowed: frozen, all.")
    if recipe.keeps and is_sharded(config):
        raise ValueError("mixture: keep was never tried with sharded weights. Train without FSDP, or leave keep out.")
    checkpoint = prepare_output(config.output_dir, recipe.resume)
    processor = load_processor(recipe.model)
    opened = {
        name: open_rows(name, source, processor.tokenizer, recipe.data_cache)
        for name, source in recipe.mixture.items()
    }
    rates = {name: source["rate"] for name, source in recipe.mixture.items()}
    plan = PackPlan({name: lengths for name, (_, lengths) in opened.items()}, rates, config.max_length, config.seed)
    packs_per_step = config.world_size * config.per_device_train_batch_size * config.gradient_accumulation_steps
    steps = -(-plan.packs_per_pass() // packs_per_step)
    record_settings(recipe, config, packs_per_step, [Path(source["rows"]) for source in recipe.mixture.values()])
    model = load_model(recipe, config.seed, "cpu" if is_sharded(config) else config.device)
    speed_up(model, recipe, config)
    rows = concatenate_datasets([rows for rows, _ in opened.values()])
    sources = zip(recipe.mixture.values(), opened.values(), strict=True)
    kept = np.concatenate([np.full(len(lengths), float(source.get("keep", 0))) for source, (_, lengths) in sources])
    train = pack_dataset(rows, plan, config.max_steps * packs_per_step, recipe.learn, kept if recipe.keeps else None)
    heldout = {
        name: heldout_packs(name, source, recipe, config, processor.tokenizer)
        for name, source in recipe.heldout.items()
    }
    config.packing, config.dataset_kwargs, config.remove_unused_columns = True, {"skip_prepare_dataset": True}, False
    config.train_sampling_strategy = "sequential"  # the plan has shuffled already
    choose_checkpointing(model, recipe, config)
    trainer = TokenTrainer(
        config=model.config,
        teacher=load_teacher(recipe, config, model.config) if recipe.teacher else None,
        embedding_rate=recipe.embedding_learning_rate,
        model=model,
        args=config,
        train_dataset=train,
        eval_dataset=heldout or None,
        processing_class=processor.tokenizer,
        peft_config=lora_config(recipe, model.config),
    )
    if trainer.is_world_process_zero():
        for name, (_, lengths) in opened.items():
            print(f"{name}: {len(lengths)} rows, {plan.left_out[name]} longer than {config.max_length} left out")
        print(f"{packs_per_step} packs of {config.max_length} ids a step, all rows once: about {steps} steps")
        print(f"activation checkpointing: {'on' if config.activation_checkpointing else 'off'}", flush=True)
    return trainer, checkpoint


def load_teacher(recipe: RowsRecipe, config: RowsConfig, trained: AnyGPTConfig) -> AnyGPTForCausalLM:
    """The model before. Raises ValueError if its ids are not those of the model that is trained."""
    load_processor(recipe.teacher)
    dtype = "bfloat16" if config.bf16 else recipe.dtype  # nobody autocasts for the teacher
    shape = ModelRecipe(model=recipe.teacher, dtype=dtype, attn_implementation=recipe.attn_implementation)
    teacher = load_model(shape, config.seed)
    if (teacher.config.vocab_size, teacher.config.modalities) != (trained.vocab_size, trained.modalities):
        raise ValueError(f"teacher: {recipe.teacher} has other ids than {recipe.model}. Name one it was made from.")
    return teacher.to(config.device).eval()


def heldout_packs(name: str, source: dict, recipe: RowsRecipe, config: RowsConfig, tokenizer) -> Dataset:
    """The first `heldout_rows` rows of a held-out source that fit, packed. Raises ValueError if none does."""
    rows, lengths = open_rows(name, source, tokenizer, recipe.data_cache)
    fits = np.flatnonzero(lengths <= config.max_length)[: recipe.heldout_rows]
    if not len(fits):
        raise ValueError(f"heldout: no row of {name!r} fits into {config.max_length} ids. Raise max_length.")
    packs = [fits[pack] for pack in best_fit_decreasing(lengths[fits], config.max_length)]
    packs = in_groups(packs, config.world_size * config.per_device_eval_batch_size)
    return pack_dataset(rows, packs, len(packs), recipe.learn)


def in_groups(packs: list[np.ndarray], size: int) -> list[np.ndarray]:
    """The same rows in packs whose number is a multiple of `size`, as far as packs can be split: what is missing
    accelerate fills up with packs that were there before, and ModalityMeter would count them twice."""
    packs = sorted(packs, key=len, reverse=True)
    while len(packs) % size and len(packs[0]) > 1:
        longest = packs.pop(0)
        packs = sorted([*packs, longest[::2], longest[1::2]], key=len, reverse=True)
    return packs


def is_sharded(config) -> bool:
    """Whether accelerate was asked for FSDP, or for DeepSpeed."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP") or config.deepspeed_plugin is not None


def choose_checkpointing(model, recipe: ModelRecipe, config) -> None:
    """Sets activation checkpointing as the recipe says: on, off, or by memory (budget.py)."""
    on = recipe.checkpointing == "on"
    if recipe.checkpointing == "auto":
        device = config.device
        on = needs_checkpointing(
            model,
            tokens=config.per_device_train_batch_size * config.max_length,
            computing=torch.bfloat16 if config.bf16 or recipe.dtype == "bfloat16" else torch.float32,
            frozen=recipe.lora_r > 0 and recipe.lora_vocabulary != "all",
            shards=config.world_size if is_sharded(config) else 1,
            device_bytes=torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None,
        )
    config.activation_checkpointing = config.gradient_checkpointing = on  # TRL reads the old name, the Trainer the new


def run(trainer: SFTTrainer, checkpoint: str | None, recipe: ModelRecipe) -> None:
    """Trains and leaves a complete checkpoint in output_dir/model (and the adapter in output_dir/adapter)."""
    trainer.train(resume_from_checkpoint=checkpoint)
    save_model(trainer, recipe)
