"""What the training scripts of the codecs share: device and processes, steps, progress, state on disk, the result.

Nothing random is saved: each step draws from a seed made of the run's seed, the step and the process, so that a run
that was stopped and resumed takes, on a CPU in float32, exactly the steps of one that was not. Several processes
(`accelerate launch`) average gradients and codebooks; `batch` is the batch of one process.
"""

import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast, reduce
from safetensors import SafetensorError, safe_open
from settings import parse
from torch import nn
from transformers.utils import logging

from processing_anygpt.files import write_text, write_whole

STATE = "training.safetensors"
# The least that the numbers of the codec scripts may be, in whichever of their dataclasses they stand.
LEAST = {
    **dict.fromkeys(("steps", "batch", "frames", "log_every", "save_every", "threads", "codes", "embed_dim"), 1),
    **dict.fromkeys(("codebook_size", "codebook_dim", "num_codebooks", "n_filters", "dimension", "ff_mult"), 1),
    **dict.fromkeys(("semantic_dimension", "lstm_layers", "hidden_size", "num_hidden_layers", "adversary_width"), 1),
    **dict.fromkeys(("num_attention_heads", "conv_kernel_size"), 1),
    **dict.fromkeys(("warm", "decoder_steps", "heldout", "validate_every", "minutes", "seed"), 0),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 0),
}
# What may differ when a run goes on: how long, how often it reports, and where it runs; and files may be elsewhere.
CHANGEABLE = (
    "steps", "decoder_steps", "minutes", "log_every", "save_every", "validate_every", "out", "work", "data", "device",
    "threads", "resume",
)  # fmt: skip


class Checked:
    """Base of the codec scripts' dataclasses. Raises ValueError on numbers that can't be, before anything is read."""

    def __post_init__(self):
        for key, least in LEAST.items():
            value = getattr(self, key, None)
            if value is not None and not value >= least:  # so that NaN is refused, too
                raise ValueError(f"{key}: got {value}, allowed: {least} or more.")
        steps = getattr(self, "steps", None)
        if steps is not None and getattr(self, "warm", 0) >= steps:
            raise ValueError(f"warm: got {self.warm}, allowed: less than steps ({steps}), or no code is ever trained.")


@dataclass
class RunSettings(Checked):
    out: Path = field(metadata={"help": "folder of the result, for from_pretrained"})
    log_every: int = field(metadata={"help": "steps between lines of output"})
    save_every: int = field(metadata={"help": "steps between states on disk"})
    validate_every: int = field(metadata={"help": "steps between held-out figures and samples; 0: never"})
    work: Path | None = field(
        default=None, metadata={"help": "folder of state, losses, settings and samples (default: OUT_training)"}
    )
    resume: bool = field(default=False, metadata={"help": "go on from the state in WORK"})
    minutes: float | None = field(default=None, metadata={"help": "stop after this time, to be resumed"})
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = field(
        default="float32", metadata={"help": "of the networks' arithmetic; weights and losses stay float32"}
    )
    threads: int = field(default=1, metadata={"help": "CPU threads of a process"})
    seed: int = 0


class Run:
    """One run of a training script.

    Args:
        settings: see there.
        *recipe: the script's other dataclasses, noted in WORK/settings.yaml, with which the run can be resumed.

    Raises:
        ValueError: no GPU where one is asked for; a state in WORK without `resume`, or the other way round; a run that
            was begun with other settings.
    """

    def __init__(self, settings: RunSettings, *recipe: Any):
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("Got device cuda, but torch finds no GPU here. Give --device cpu, or install its driver.")
        self.settings, self.recipe = settings, (*recipe, settings)
        self.work = settings.work or settings.out.with_name(settings.out.name + "_training")
        if settings.resume and not (self.work / STATE).exists():
            raise ValueError(f"No {STATE} in {self.work}: nothing to resume. Start without --resume.")
        if not settings.resume and (self.work / STATE).exists():
            raise ValueError(f"{self.work} holds a run already. Add --resume, or give another --work, or remove it.")
        if settings.resume and (self.work / "settings.yaml").exists():
            self._check_settings(self.work / "settings.yaml")
        torch.set_num_threads(settings.threads)
        if settings.device == "cuda":
            torch.set_float32_matmul_precision("high")
        torch.manual_seed(settings.seed)  # the first weights, the same in every process
        logging.disable_progress_bar()
        precision = "bf16" if settings.dtype == "bfloat16" else "no"
        self.accelerator = Accelerator(cpu=settings.device == "cpu", mixed_precision=precision)
        self.device = self.accelerator.device
        self.is_main = self.accelerator.is_main_process
        self.sums: dict[str, torch.Tensor] = {}
        self.count = 0
        self.history: list[dict[str, float]] = []

    def _check_settings(self, path: Path) -> None:
        """ValueError if the run was begun with settings that would make other steps of it."""
        before = parse([type(each) for each in self.recipe], [str(path)])
        for old, new in zip(before, self.recipe, strict=True):
            for key, value in vars(old).items():
                if key not in CHANGEABLE and getattr(new, key) != value:
                    raise ValueError(
                        f"resume: {key} was {value} when {self.work} was begun and is {getattr(new, key)} now. Resume "
                        f"with {path}, or start with another --work."
                    )

    def _begin(self) -> None:
        """Makes OUT and WORK and writes the settings; OSError if that can't be. Only now: what is refused before, for
        its data for example, leaves nothing."""
        for folder in (self.settings.out, self.work):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()  # better now than after an hour
        if self.is_main:
            known = {key: value for each in self.recipe for key, value in dataclasses.asdict(each).items()}
            plain = {k: str(v) if isinstance(v, Path) else v for k, v in known.items() if k != "resume"}
            text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
            write_text(self.work / "settings.yaml", text)

    def say(self, line: str) -> None:
        if self.is_main:
            print(line, flush=True)

    def autocast(self):
        """Context in which the networks compute in the wished precision."""
        return self.accelerator.autocast()

    def steps(
        self,
        total: int,
        parts: dict[str, Any],
        remark: Callable[[], str] = str,
        validate: Callable[[Path], dict[str, float]] | None = None,
    ) -> Iterator[int]:
        """Yields the steps that are left of 0 to total - 1, with fresh seeds; between them reports, saves, validates.

        Args:
            parts: everything that training changes, by name: modules and optimizers.
            remark: what to add to a line of output.
            validate: writes samples to the path it gets, plus a suffix, and returns figures of held-out data.

        Raises:
            ValueError: the state in WORK is of another run, or of more steps.
            OSError: OUT or WORK can't be written.
        """
        first = done = self._restore(parts) if self.settings.resume else 0
        if first > total:
            raise ValueError(
                f"{self.work} holds {first} steps, allowed: up to the {total} that are asked for. Add steps."
            )
        self._begin()
        self.say(f"{'going on after' if first else 'starting at'} step {first} of {total}")
        began = time.monotonic()
        for step in range(first, total):
            torch.manual_seed(seed_of(self.settings.seed, step, self.accelerator.process_index))
            yield step
            done = step + 1
            stop = done == total or self._is_late(time.monotonic() - began)
            if done % self.settings.log_every == 0 or done == total:
                seconds = time.monotonic() - began
                self._report(done, total, seconds, (done - first) / seconds, remark())
            every = self.settings.validate_every
            if self.is_main and validate and every and (done % every == 0 or stop):
                (self.work / "samples").mkdir(exist_ok=True)
                figures = validate(self.work / "samples" / f"step_{done:06d}")
                self.say(f"step {done}, held out: {listed(figures)}")
            if done % self.settings.save_every == 0 or stop:
                self._save(done, parts)
            if stop:
                return

    def learn(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
        """One step of `optimizer` down the gradient of `loss`, averaged over the processes."""
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.accelerator.num_processes > 1:
            mean = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
            for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))
        if clip is not None:
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
        optimizer.step()

    def note(self, **values: torch.Tensor) -> None:
        """Scalars, once a step; the next line of output gives their means. They stay on their device till then."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().double()
        self.count += 1

    def _totals(self) -> dict[str, float]:
        """Of the noted values since the last line, the mean over the processes."""
        return {name: float(reduce(total, "mean")) for name, total in self.sums.items()}

    def _is_late(self, seconds: float) -> bool:
        if self.settings.minutes is None:
            return False
        return float(broadcast(torch.tensor([seconds], device=self.device))) >= 60 * self.settings.minutes

    def _report(self, done: int, total: int, seconds: float, rate: float, remark: str) -> None:
        means = {name: value / self.count for name, value in self._totals().items()}
        self._refuse(means, done)
        left = (total - done) / rate / 60
        speed = f"{seconds / 60:.1f} min, {rate:.2f} steps/s, {left:.1f} min left"
        self.say(f"step {done}/{total}, {speed}: {listed(means)}{', ' if remark else ''}{remark}")
        self.history.append({"step": done} | means)
        self.sums, self.count = {}, 0

    def _refuse(self, means: dict[str, float], done: int) -> None:
        """ValueError if a figure is no number, before the weights that gave it take the place of good ones."""
        for name, value in means.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"At step {done} {name} is {value}. Lower the learning rate; --resume goes on from the last state."
                )

    def _save(self, done: int, parts: dict[str, Any]) -> None:
        totals = self._totals()
        self._refuse(totals, done)
        progress = {"step": done, "history": self.history, "totals": totals, "count": self.count}
        if self.is_main:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named_tensors(parts).items()}
            state = safetensors.torch.save(tensors, {"progress": json.dumps(progress)})
            losses = json.dumps(self.history, indent=1)
            write_whole(self.work / STATE, lambda temporary: temporary.write_bytes(state))
            write_text(self.work / "losses.json", losses)
        self.accelerator.wait_for_everyone()

    def _restore(self, parts: dict[str, Any]) -> int:
        """Fills `parts` from the state on disk -> steps done."""
        path = self.work / STATE
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                progress = json.loads(file.metadata()["progress"])
        except (SafetensorError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is no state of this script ({error}). Give another --work.") from error
        expected = named_tensors({name: part for name, part in parts.items() if isinstance(part, nn.Module)})
        for name, tensor in expected.items():
            got = list(tensors[name].shape) if name in tensors else "nothing"
            if got != list(tensor.shape):
                raise ValueError(
                    f"{path} is of another run: {name} is {got} there, {list(tensor.shape)} here. "
                    "Resume with the settings.yaml beside it."
                )
        for name, part in parts.items():
            own = {k.removeprefix(name + "/"): v for k, v in tensors.items() if k.startswith(name + "/")}
            if isinstance(part, nn.Module):
                part.load_state_dict(own)
                continue
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, tensor in own.items():
                index, entry = key.split("/")
                state.setdefault(int(index), {})[entry] = tensor
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})
        self.history, self.count = progress["history"], progress["count"]
        self.sums = {
            name: torch.tensor(value, dtype=torch.float64, device=self.device)
            for name, value in progress["totals"].items()
        }
        return progress["step"]


def seed_of(seed: int, step: int, process: int) -> int:
    """Seeds that have nothing in common, also for neighbouring steps."""
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1, np.uint64)[0])


def named_tensors(parts: dict[str, Any]) -> dict[str, torch.Tensor]:
    """All tensors of modules and optimizers, as PART/TENSOR and PART/PARAMETER/TENSOR."""
    tensors = {}
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            tensors |= {f"{name}/{key}": tensor for key, tensor in part.state_dict().items()}
        else:
            for index, state in part.state_dict()["state"].items():
                tensors |= {f"{name}/{index}/{key}": tensor for key, tensor in state.items()}
    return tensors


def listed(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
