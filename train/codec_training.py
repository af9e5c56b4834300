"""What the training scripts of the codecs share: device and processes, steps, progress, state on disk, the result.

Nothing random is saved: each step draws from a seed made of the run's seed, the step and the process, so that a run
that was stopped and resumed takes, on a CPU in float32, exactly the steps of one that was not. Several processes
(`accelerate launch`) average gradients and codebooks; `batch` is the batch of one process.
"""

import dataclasses
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from torch import nn
from transformers import AutoConfig
from transformers.utils import logging

from modeling_anygpt.codecs import SpeechTokenizerConfig, SpeechTokenizerModel

STATE = "training.safetensors"


@dataclass
class RunSettings:
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
        ValueError: no GPU where one is asked for; a state in WORK without `resume`, or the other way round.
        OSError: OUT or WORK can't be written.
    """

    def __init__(self, settings: RunSettings, *recipe: Any):
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("Got device cuda, but torch finds no GPU here. Give --device cpu, or install its driver.")
        torch.set_num_threads(settings.threads)
        if settings.device == "cuda":
            torch.set_float32_matmul_precision("high")
        torch.manual_seed(settings.seed)  # the first weights, the same in every process
        logging.disable_progress_bar()
        self.settings = settings
        precision = "bf16" if settings.dtype == "bfloat16" else "no"
        self.accelerator = Accelerator(cpu=settings.device == "cpu", mixed_precision=precision)
        self.device = self.accelerator.device
        self.is_main = self.accelerator.is_main_process
        self.work = settings.work or settings.out.with_name(settings.out.name + "_training")
        if settings.resume and not (self.work / STATE).exists():
            raise ValueError(f"No {STATE} in {self.work}: nothing to resume. Start without --resume.")
        if not settings.resume and (self.work / STATE).exists():
            raise ValueError(f"{self.work} holds a run already. Add --resume, or give another --work, or remove it.")
        for folder in (settings.out, self.work):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()  # better now than after an hour
        self.sums: dict[str, torch.Tensor] = {}
        self.count = 0
        self.history: list[dict[str, float]] = []
        if self.is_main:
            known = {key: value for each in (*recipe, settings) for key, value in dataclasses.asdict(each).items()}
            plain = {k: str(v) if isinstance(v, Path) else v for k, v in known.items() if k != "resume"}
            write_whole(self.work / "settings.yaml", yaml.safe_dump(plain, sort_keys=False).encode())

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
        """
        first = done = self._restore(parts) if self.settings.resume else 0
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
        left = (total - done) / rate / 60
        speed = f"{seconds / 60:.1f} min, {rate:.2f} steps/s, {left:.1f} min left"
        self.say(f"step {done}/{total}, {speed}: {listed(means)}{', ' if remark else ''}{remark}")
        self.history.append({"step": done} | means)
        self.sums, self.count = {}, 0

    def _save(self, done: int, parts: dict[str, Any]) -> None:
        progress = {"step": done, "history": self.history, "totals": self._totals(), "count": self.count}
        if self.is_main:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named_tensors(parts).items()}
            state = safetensors.torch.save(tensors, {"progress": json.dumps(progress)})
            write_whole(self.work / STATE, state)
            write_whole(self.work / "losses.json", json.dumps(self.history, indent=1).encode())
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


def load_speech_codec(source: str | Path) -> SpeechTokenizerModel:
    """A trained codec, float32, without gradients; ValueError if that is something else."""
    config = AutoConfig.from_pretrained(source)
    if not isinstance(config, SpeechTokenizerConfig):
        raise ValueError(f"{source} holds a model of type {config.model_type!r}, allowed: a SpeechTokenizer.")
    codec = SpeechTokenizerModel.from_pretrained(source, dtype=torch.float32)
    return codec.eval().requires_grad_(False)


def write_whole(path: Path, data: bytes) -> None:
    """A reader never meets half a file, and a full disk leaves the old one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    with whole_files(folder) as temporary:
        model.save_pretrained(temporary, state_dict=half)
        config = json.loads((temporary / "config.json").read_text()) | {"dtype": "float32"}
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
