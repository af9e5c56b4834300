"""Train the language model on rows of token ids (made by make_tiny_data.py), with transformers' Trainer.

  python train/lm.py train/configs/tiny_pretrain.yaml
  python train/lm.py train/configs/tiny_sft.yaml --resume_from_checkpoint runs/sft/checkpoint-500

The YAML file holds the fields of `RowArguments` and of transformers' `TrainingArguments`; the command line wins. A
batch holds rows of one task and of similar length, about `tokens_per_batch` ids; tasks are drawn by `mixture`. So
little is padded, and the mean over a batch of transcripts weighs as much as the mean over a batch of speech, though a
transcript is ten times shorter.
"""

import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from codec_files import read_arrays
from settings import parse, read_yaml, run_script
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

import modeling_anygpt  # noqa: F401  registers AnyGPT with the Auto classes
from processing_anygpt.conversation import IGNORED


@dataclass
class RowArguments:
    model: str = field(metadata={"help": "folder with config.json; its weights, if any, are where training starts"})
    rows: str = field(metadata={"help": "folder with TASK_train.npz and, where there is one, TASK_heldout.npz"})
    mixture: str = field(metadata={"help": "share of the batches for each task, for example {asr: 2, tts: 3}"})
    tokens_per_batch: int = 4096
    heldout_rows: int = field(default=64, metadata={"help": "rows of each task's held-out file to evaluate on"})
    compile: bool = field(default=False, metadata={"help": "the backbone by torch.compile: a fifth faster on a CPU"})
    attn_implementation: str = field(default="sdpa", metadata={"help": "eager is the fastest with --bf16 on a CPU"})

    def __post_init__(self):
        self.mixture = read_yaml(self.mixture, "mixture")
        shares = self.mixture.values() if isinstance(self.mixture, dict) else [None]
        if not shares or not all(isinstance(share, int | float) and 0 < share < math.inf for share in shares):
            raise ValueError(f"mixture: got {self.mixture}, allowed: {{TASK: SHARE, ...}}, shares above 0.")
        for key in ("tokens_per_batch", "heldout_rows"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: got {getattr(self, key)}, allowed: 1 or more.")


class TaskRows:
    """The rows of one task."""

    def __init__(self, path: Path):
        self.ids, self.offsets, labelled = read_arrays(path, "ids", "offsets", "labelled")
        self.labelled = np.unpackbits(labelled, count=len(self.ids)).astype(bool)
        self.lengths = np.diff(self.offsets)

    def batch(self, rows) -> dict[str, torch.Tensor]:
        """Rows -> input_ids, labels [B, L], padded on the right (a causal model needs no mask for that)."""
        length = -(-int(self.lengths[rows].max()) // 8) * 8
        ids = np.zeros((len(rows), length), dtype=np.int64)
        labels = np.full((len(rows), length), IGNORED, dtype=np.int64)
        for i, row in enumerate(rows):
            part = slice(self.offsets[row], self.offsets[row + 1])
            n = self.lengths[row]
            ids[i, :n] = self.ids[part]
            labels[i, :n] = np.where(self.labelled[part], ids[i, :n], IGNORED)
        return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}


class Batches(Dataset):
    """`count` ready batches; item i is the same in every run with the same seed, so a resumed run sees the same."""

    def __init__(self, folder: Path, mixture: dict[str, float], count: int, tokens: int, seed: int):
        self.tasks = {task: TaskRows(folder / f"{task}_train.npz") for task in mixture}
        rng = random.Random(seed)
        epochs = {task: iter(()) for task in mixture}
        self.plan = []
        for task in rng.choices(list(mixture), weights=list(mixture.values()), k=count):
            rows = next(epochs[task], None)
            if rows is None:
                epochs[task] = iter(self._epoch(self.tasks[task].lengths, tokens, rng))
                rows = next(epochs[task])
            self.plan.append((task, rows))

    @staticmethod
    def _epoch(lengths: np.ndarray, tokens: int, rng: random.Random) -> list[list[int]]:
        """All rows once, in shuffled batches of similar lengths."""
        order = sorted(range(len(lengths)), key=lambda row: (lengths[row] // 8, rng.random()))
        batches, batch = [], []
        for row in order:  # lengths rise, so the newest row is the longest
            if batch and (len(batch) + 1) * lengths[row] > tokens:
                batches.append(batch)
                batch = []
            batch.append(row)
        batches.append(batch)
        rng.shuffle(batches)
        return batches

    def __len__(self):
        return len(self.plan)

    def __getitem__(self, index):
        task, rows = self.plan[index]
        return self.tasks[task].batch(rows)


class HeldOut(Dataset):
    """The first rows of a held-out file, one a batch."""

    def __init__(self, path: Path, count: int):
        self.rows = TaskRows(path)
        self.count = min(count, len(self.rows.lengths))

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.rows.batch([index])


class RowTrainer(Trainer):
    """Batches come ready-made and in order, and logits are made only where there is something to learn."""

    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean cross entropy over the labelled ids: what the model's own loss gives, without the other rows' logits.

        A transcript labels one id in ten, and the head is a fifth of this model's work.
        """
        labels = inputs["labels"][:, 1:]
        learned = labels != IGNORED
        with self.accelerator.autocast():  # --bf16 wraps only the whole model's forward, which is not called
            hidden = model.get_decoder()(input_ids=inputs["input_ids"]).last_hidden_state[:, :-1]
            logits = model.get_output_embeddings()(hidden[learned])
        loss = F.cross_entropy(logits.float(), labels[learned])
        return (loss, {}) if return_outputs else loss


def the_only(batch: list):
    """Collator: the data set's items are batches already."""
    (item,) = batch
    return item


def load(folder: str, attention: str, seed: int):
    if list(Path(folder).glob("*.safetensors")):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), attn_implementation=attention)


def main(words: list[str]) -> None:
    rows, training = parse((RowArguments, TrainingArguments), words, __doc__)
    if training.max_steps < 1:
        raise ValueError(f"max_steps: got {training.max_steps}, allowed: 1 or more. A mixture has no end of its own.")
    for key in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        if getattr(training, key) != 1:
            raise ValueError(f"{key}: got {getattr(training, key)}, allowed: 1; use tokens_per_batch.")
    folder = Path(rows.rows)
    train = Batches(folder, rows.mixture, training.max_steps, rows.tokens_per_batch, training.seed)
    heldout = {task: folder / f"{task}_heldout.npz" for task in rows.mixture}
    heldout = {task: HeldOut(path, rows.heldout_rows) for task, path in heldout.items() if path.is_file()}
    model = load(rows.model, rows.attn_implementation, training.seed)
    if rows.compile:
        model.get_decoder().compile(dynamic=True)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    trainer = RowTrainer(model=model, args=training, train_dataset=train, eval_dataset=heldout, data_collator=the_only)
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    model.config.use_cache = True  # Trainer switches it off
    trainer.save_model()
    print(f"saved {training.output_dir}", flush=True)


if __name__ == "__main__":
    run_script(main)
