"""Speed and memory of training, ours beside a plain transformers Trainer (+ PEFT) loop; what packing wastes and leaks.

  python benchmarks/training.py                          all but attention, on one GPU of 80 GB: some minutes
  python benchmarks/training.py lora --size 7b           LoRA r16 on all linear layers, packs of 4,096 ids, bfloat16
  python benchmarks/training.py full --size 1b           all weights, float32 with bfloat16 autocast
  python benchmarks/training.py packing                  waste and leak; a CPU is enough
  python benchmarks/training.py attention                what attention to packs costs on one core of a CPU
  python benchmarks/training.py lora --size toy          a try of the program itself on a CPU

Every measurement is its own process, on random weights and on random rows with the lengths of the paper's sources; all
ids are learned. Ours is train/sft.py's own build with the recipe of that size. The plain loop is what tutorials give:
rows cut together into sequences of one length without masks, two of them a batch, sdpa, checkpointing on. Exit code 1
if one of them failed.

  tokens/s    ids that are no padding / seconds, after the warm-up steps
  memory_gb   torch.cuda.max_memory_allocated, 1e9 bytes
  mfu         FLOPs of an id (train/budget.py: flops_per_token, no recomputation) x tokens/s / the GPU's bfloat16 peak
  waste       positions of a sequence that hold no id / all positions
  rows_cut    rows that are in two sequences / all rows
  leak        largest change of a row's logits when the row before it is replaced (float32, tiny model)
  ms_per_1024_ids  median of anygpt-tiny's forward and backward pass on rows of 80 to 280 ids, all weights trained
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))
import budget
import row_attention
import sft
from peft import LoraConfig, get_peft_model
from settings import run_script

from modeling_anygpt import AnyGPTConfig
from processing_anygpt import AnyGPTProcessor
from processing_anygpt.packing import PackPlan
from processing_anygpt.rows import finish, make_row, shard_name, vocabulary_fingerprint, write_shard

ROOT = Path(__file__).parent.parent
TINY = ROOT / "modeling_anygpt" / "pretrained" / "anygpt_tiny"
VOCABULARY = 49_472  # 49,420 rows of the released chat model, rounded up as `anygpt init` does
# hidden, intermediate, layers, heads, key-value heads; LLaMA-2 7B and TinyLlama 1.1B
SIZES = {"7b": (4096, 11008, 32, 32, 32), "1b": (2048, 5632, 22, 32, 4), "toy": (64, 128, 2, 4, 4)}
# Share of the ids, shortest and longest row: interleaved text, captions with 32 codes, 10-20 s and 1-18 s of speech,
# 5 s of music.
SOURCES = {
    "interleaved": (0.05, 100, 1500),
    "image_text": (0.30, 45, 120),
    "mls": (0.13, 560, 1050),
    "other_speech": (0.27, 60, 900),
    "music": (0.25, 1010, 1060),
}


def make_checkpoint(folder: Path, size: str) -> Path:
    """config.json of that size with anygpt-tiny's tokenizer and table; no weights."""
    hidden, intermediate, layers, heads, kv_heads = SIZES[size]
    original = AutoConfig.from_pretrained(TINY)
    text = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 4096,
    }
    table = [spec.to_dict() for spec in original.modalities]
    config = AnyGPTConfig(text_config=text, modalities=table, eos_token_id=original.eos_token_id, pad_token_id=0)
    config.save_pretrained(folder)
    AnyGPTProcessor(AutoTokenizer.from_pretrained(TINY), table).save_pretrained(folder)
    return folder


def row_lengths(ids: int, longest: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Lengths of rows of each source, `ids` in all, in the paper's shares; clipped to `longest`."""
    rng = np.random.default_rng(seed)
    lengths = {}
    for name, (rate, low, high) in SOURCES.items():
        count = max(8, round(2 * rate * ids / (low + high)))
        lengths[name] = np.minimum(rng.integers(low, high + 1, count), longest)
    return lengths


def write_rows(folder: Path, lengths: dict[str, np.ndarray]) -> dict[str, dict]:
    """Folders of random rows; the mixture that reads them."""
    config = AutoConfig.from_pretrained(TINY)
    names = [spec.name for spec in config.modalities]
    fingerprint = vocabulary_fingerprint(AutoTokenizer.from_pretrained(TINY))
    rng = np.random.default_rng(1)
    for name, each in lengths.items():
        (folder / name).mkdir()
        ids = [rng.integers(40, 4100, n).tolist() for n in each]
        rows = [make_row(row, row, "random", str(i), config.modalities) for i, row in enumerate(ids)]
        write_shard(folder / name / shard_name(0), rows, [], names)
        facts = {"settings": {}, "modalities": names, "codecs": {}, "input": "", "units": 1}
        finish(folder / name, facts | {"tokenizer": fingerprint})
    return {name: {"rows": str(folder / name), "rate": SOURCES[name][0]} for name in lengths}


class Clock(TrainerCallback):
    """Times of the steps after the warm-up, with the device waited for."""

    def __init__(self, warm_up: int):
        self.warm_up, self.times = warm_up, []

    def on_step_end(self, args, state, control, **arguments):
        if state.global_step >= self.warm_up:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        return self.times[-1] - self.times[0]


def ours(job: argparse.Namespace, folder: Path) -> dict:
    """Our recipe of that size, with several packs a step, so that the optimizer takes its usual share of the time."""
    lengths = row_lengths(40 * job.length, job.length)
    recipe = ROOT / "train" / "configs" / {"lora": "sft_7b_lora.yaml", "full": "pretrain_1b.yaml"}[job.kind]
    given = {
        "model": make_checkpoint(folder / "model", job.size),
        "mixture": json.dumps(write_rows(folder, lengths)),
        "data_cache": folder / "cache",
        "output_dir": folder / "out",
        "max_length": job.length,
        "pad_to_multiple_of": job.length,
        "max_steps": job.steps,
        "logging_steps": 1,
        "disable_tqdm": True,
        "save_strategy": "no",
        "per_device_train_batch_size": job.packs,
        "gradient_accumulation_steps": job.accumulate,
        "attn_implementation": job.attention,
        "liger": job.liger,
        "compile": job.compile,
        "checkpointing": job.checkpointing,
    }
    if job.cpu:
        given |= {"use_cpu": True, "bf16": False, "dtype": "float32"}
    line = [str(recipe), *(f"--{key}={value}" for key, value in given.items() if value is not None)]
    settings, config = sft.parse(sft.CLASSES, line)
    settings.from_scratch = True  # refused with LoRA, whose merged result would be of no use
    trainer, _ = sft.build(settings, config)
    clock = Clock(job.warm_up)
    trainer.add_callback(clock)
    trainer.train()
    packs_per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    plan = PackPlan(lengths, {name: SOURCES[name][0] for name in lengths}, job.length, trainer.args.seed)
    packs = range(job.warm_up * packs_per_step, job.steps * packs_per_step)
    tokens = sum(int(plan.lengths[plan[pack]].sum()) for pack in packs)
    every = np.concatenate(list(lengths.values())).astype(float)
    context = (every**2).sum() / every.sum()
    options = f"{settings.attn_implementation}{', Liger' * settings.liger}{', compiled' * bool(settings.compile)}"
    checkpointing = "on" if trainer.args.activation_checkpointing else "off"
    step = f"{config.per_device_train_batch_size} x {config.gradient_accumulation_steps} packs a step"
    return figures(trainer, clock, tokens, context, job) | {
        "what": f"ours: {step}, {options}, checkpointing {checkpointing}"
    }


def plain(job: argparse.Namespace, folder: Path) -> dict:
    """transformers' Trainer on concatenated rows, without masks, two sequences a batch, checkpointing on."""
    dtype = torch.bfloat16 if job.kind == "lora" and not job.cpu else torch.float32
    config = AutoConfig.from_pretrained(make_checkpoint(folder / "model", job.size))
    with torch.device("cpu" if job.cpu else "cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if job.kind == "lora":
        model = get_peft_model(
            model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        )
        model.enable_input_require_grads()
    rng = np.random.default_rng(1)
    rows = [
        {"input_ids": (ids := rng.integers(40, 4100, job.length).tolist()), "labels": ids}
        for _ in range(2 * job.steps)
    ]
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        max_steps=job.steps,
        per_device_train_batch_size=2,
        bf16=not job.cpu,
        use_cpu=job.cpu,
        optim="adamw_torch_fused",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    arguments.gradient_checkpointing = arguments.activation_checkpointing = True  # transformers' old name and its new
    clock = Clock(job.warm_up)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[clock], data_collator=collate)
    trainer.train()
    tokens = 2 * job.length * (job.steps - job.warm_up)
    return figures(trainer, clock, tokens, job.length, job) | {
        "what": "plain Trainer: no masks, sdpa, checkpointing on"
    }


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels")}


def figures(trainer, clock: Clock, tokens: int, context: float, job: argparse.Namespace) -> dict:
    flops = budget.flops_per_token(trainer.model, job.kind == "lora", context, learned=1.0)
    peak = budget.peak_flops()
    speed = tokens / clock.seconds
    memory = round(torch.cuda.max_memory_allocated() / 1e9, 1) if torch.cuda.is_available() else None
    mfu = round(flops * speed / peak, 3) if peak else None
    return {"tokens/s": round(speed), "memory_gb": memory, "gflops_per_token": round(flops / 1e9, 4), "mfu": mfu}


def packing(job: argparse.Namespace, folder: Path) -> list[dict]:
    """Waste and leak of our packs, of padded batches, and of the original's concatenation."""
    lengths = row_lengths(300 * job.length, job.length)
    plan = PackPlan(lengths, {name: SOURCES[name][0] for name in lengths}, job.length, seed=0)
    every = np.random.default_rng(2).permutation(np.concatenate(list(lengths.values())))
    batches = every[: len(every) // 8 * 8].reshape(-1, 8)
    cut = len(np.unique(np.cumsum(every) // job.length)) / len(every)
    config = AutoConfig.from_pretrained(make_checkpoint(folder / "model", "toy"))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    first, other, second = torch.randint(40, 4100, (3, 200))
    alone = logits(model, [second])

    def leak(masked: bool) -> float:
        after = [logits(model, [neighbour, second], masked)[200:] for neighbour in (first, other)]
        return (after[0] - after[1]).abs().max().item()

    packed = logits(model, [first, second], masked=True)[200:]
    return [
        {"what": "ours: best fit, masked", "waste": plan.waste(512), "rows_cut": 0.0, "leak": leak(True),
         "packed_minus_alone": (packed - alone).abs().max().item()},
        {"what": "concatenated, no masks (the original's)", "waste": 0.0, "rows_cut": cut, "leak": leak(False),
         "packed_minus_alone": (logits(model, [first, second], masked=False)[200:] - alone).abs().max().item()},
        {"what": "padded, 8 rows a batch", "waste": 1 - batches.sum() / (batches.max(1) * 8).sum(), "rows_cut": 0.0,
         "leak": 0.0, "packed_minus_alone": 0.0},
    ]  # fmt: skip


def attention(job: argparse.Namespace, folder: Path) -> list[dict]:
    """Time of a pass with each kind of attention that a CPU has, in packs of 512 ids or of 1,024."""
    torch.set_num_threads(1)
    lengths = np.random.default_rng(3).integers(80, 281, 100)
    results = []
    for size, kind, bf16 in itertools.product((512, 1024), ("eager", "sdpa", row_attention.NAME), (False, True)):
        model = AutoModelForCausalLM.from_pretrained(TINY, attn_implementation=kind)
        plan = PackPlan({"rows": lengths}, {"rows": 1.0}, size, seed=0)
        times = []
        for number in range(job.steps * 1024 // size):
            positions = torch.cat([torch.arange(n) for n in plan.lengths[plan[number]]])[None]
            ids = torch.randint(40, 4100, positions.shape)
            begin = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(ids, labels=ids, position_ids=positions, use_cache=False).loss
            loss.backward()
            times.append((time.perf_counter() - begin) / ids.numel())
        what = f"{kind}, packs of {size}, {'bfloat16' if bf16 else 'float32'}"
        milliseconds = round(1024e3 * float(np.median(times[job.warm_up :])))
        results.append({"device": "CPU", "what": what, "ms_per_1024_ids": milliseconds})
    return results


@torch.no_grad()
def logits(model, rows: list[torch.Tensor], masked: bool = True) -> torch.Tensor:
    """[L, V] of rows in one sequence; positions start again at each row if masked."""
    length = sum(map(len, rows))
    positions = torch.cat([torch.arange(len(row)) for row in rows]) if masked else torch.arange(length)
    return model(torch.cat(rows)[None], position_ids=positions[None], use_cache=False).logits[0]


def jobs(args: argparse.Namespace) -> list[list[str]]:
    """Command lines of the measurements, each for its own process."""
    lines = []
    for kind, size in (("lora", args.size or "7b"), ("full", args.size or "1b")):
        if args.kind in (kind, "all"):
            lines += [[kind, "--size", size, "--run", run] for run in ("plain", "ours")]
    if args.kind in ("packing", "all"):
        lines.append(["packing", "--run", "packing"])
    if args.kind == "attention":  # of no use to who has a GPU
        lines.append(["attention", "--run", "attention"])
    return lines


RUNS = {"ours": ours, "plain": plain, "packing": packing, "attention": attention}


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", default="all", choices=["all", "lora", "full", "packing", "attention"])
    parser.add_argument("--size", choices=list(SIZES), help="default: 7b for lora, 1b for full")
    parser.add_argument("--length", type=int, default=4096, help="ids of a pack")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=5, help="steps that are not timed")
    own = parser.add_argument_group("ours", "by default as the recipe has it")
    own.add_argument("--packs", type=int, help="packs of one forward pass")
    own.add_argument("--accumulate", type=int, help="forward passes of one step")
    own.add_argument("--attention", help="sdpa needs no extra package")
    own.add_argument("--liger", type=json.loads, help="true or false: Liger's kernels")
    own.add_argument("--checkpointing", choices=["auto", "on", "off"])
    own.add_argument("--compile", help="compile the layers, for example with inductor; '' does not")
    parser.add_argument("--run", choices=list(RUNS), help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.warm_up < 1 or args.steps < args.warm_up + 2:
        raise ValueError(
            f"Got {args.steps} steps with --warm-up {args.warm_up}, allowed are 1 to warm up and 2 more. Add --steps."
        )
    args.cpu = not torch.cuda.is_available()
    if args.cpu and args.kind not in ("packing", "attention") and args.size != "toy":
        raise ValueError("torch sees no GPU. Measure packing or attention, or try the program with --size toy.")
    if args.cpu:
        args.attention, args.liger, args.compile = "sdpa", False, ""
    if args.run:
        with tempfile.TemporaryDirectory() as folder:
            result = RUNS[args.run](args, Path(folder))
        print(f"RESULT {json.dumps(result)}")
        return
    device = torch.cuda.get_device_name() if not args.cpu else "CPU"
    given = [word for word in words if word != args.kind]
    failed = False
    for line in jobs(args):
        done = subprocess.run([sys.executable, __file__, *line, *given], capture_output=True, text=True)
        found = [text for text in done.stdout.splitlines() if text.startswith("RESULT ")]
        if not found:
            failed = True
            problem = (done.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"{' '.join(line)}: failed: {problem}", file=sys.stderr, flush=True)
            continue
        results = json.loads(found[0].removeprefix("RESULT "))
        for result in results if isinstance(results, list) else [results]:
            print(json.dumps({"job": " ".join(line[: line.index("--run")]), "device": device} | result), flush=True)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
