"""Put an adapter into the weights of its base model: a complete checkpoint, for programs that know no adapters.

  python train/merge.py --adapter runs/voice/adapter --out runs/voice/merged

The trainers do it themselves at their end; this is for an adapter that came from elsewhere, or for another dtype.
"""

import argparse
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from recipe import ModelRecipe, load_model, load_processor
from safetensors import SafetensorError
from settings import run_script

from serving_anygpt.export import adapter_tensors
from serving_anygpt.requests import GENERAL_INSTRUCTIONS, PROMPTS_FILE, instructions_of, write_prompts

WEIGHTS = "adapter_model.safetensors"


@contextmanager
def whole_folder(folder: Path):
    """Yields a temporary folder beside `folder` that takes its place at the end; nothing stays after an error."""
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    with whole_or_nothing(temporary):
        temporary.mkdir(parents=True)
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)


@contextmanager
def whole_or_nothing(folder: Path):
    """Removes `folder` if writing it fails. What a full disk makes torch raise becomes an OSError."""
    try:
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, RuntimeError | SafetensorError):
            raise OSError(f"{folder} can't be written ({error}). Is the disk full?") from error
        raise


def refuse_existing(folder: Path) -> None:
    """Before hours of work that would end in it."""
    if folder.exists():
        raise ValueError(f"{folder} exists already. Give the name of a new folder, or remove it.")


def save_whole(model, processor, out: Path, base: str) -> None:
    """A complete checkpoint in `out`, or nothing. It is asked in the words that `base` is asked in.

    Raises ValueError if a weight is no number: of a training that went wrong.
    """
    broken = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    if broken:
        raise ValueError(f"{broken[0]} ({len(broken)} such) holds NaN or infinity; {out} was not written. Train anew.")
    wording = instructions_of(base)
    model.config.use_cache = True  # Trainer switches it off, for good
    with whole_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        if wording != GENERAL_INSTRUCTIONS:
            write_prompts(wording, folder / PROMPTS_FILE)


def merge(base: str, adapter: str | Path, out: Path, dtype: str) -> None:
    """Writes base + adapter with the base's processor and codecs to `out`, whole or not at all."""
    processor = load_processor(base)
    model = load_model(ModelRecipe(model=base, dtype=dtype), seed=0)
    try:
        model = PeftModel.from_pretrained(model, adapter)
        check_keys(model, Path(adapter) / WEIGHTS)
    except (RuntimeError, KeyError, TypeError, ValueError, OSError, SafetensorError) as error:  # of damaged files, too
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"The adapter {adapter} does not fit {base}: {first} Give the --base it was trained on."
        ) from error
    save_whole(model.merge_and_unload(), processor, out, base)


def check_keys(model: PeftModel, file: Path) -> None:
    """ValueError unless the adapter in `file` is the one that `model` has a place for."""
    given, taken = adapter_tensors(model, file)
    wrong = sorted(given ^ taken)
    if wrong:
        where = "has no place in the model" if wrong[0] in given else "is missing from the adapter"
        raise ValueError(f"{wrong[0]} {where} ({len(wrong)} such in all).")


def save_model(trainer, recipe: ModelRecipe) -> None:
    """Saves what `trainer` has: output_dir/model, complete, and output_dir/adapter if it trained one.

    All processes call it; under FSDP and ZeRO the weights are gathered.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.set_state_dict_type("FULL_STATE_DICT")
    main = trainer.is_world_process_zero()
    out = Path(trainer.args.output_dir)
    raw = out / ".weights.part"
    if main:
        shutil.rmtree(raw, ignore_errors=True)  # of a run that was killed here
    trainer.accelerator.wait_for_everyone()
    with whole_or_nothing(raw):
        trainer.save_model(raw)
        if main:
            (raw / "training_args.bin").unlink()  # a pickle, and of no use to those who load the model
            if recipe.lora_r:
                with whole_folder(out / "adapter") as folder:
                    shutil.copytree(raw, folder, dirs_exist_ok=True)
                merge(recipe.model, out / "adapter", out / "model", recipe.export_dtype or recipe.dtype)
            else:
                export(raw, recipe, out / "model")
            shutil.rmtree(raw)
    trainer.accelerator.wait_for_everyone()
    if main:
        print(f"saved {out / 'model'}", flush=True)


def export(weights: Path, recipe: ModelRecipe, out: Path) -> None:
    """The trained weights with the processor and codecs of the checkpoint they started from."""
    processor = load_processor(recipe.model)
    # FSDP2 gathers a tied matrix twice; a loaded model is saved with one.
    model = load_model(ModelRecipe(model=str(weights), dtype=recipe.export_dtype or recipe.dtype), seed=0)
    save_whole(model, processor, out, recipe.model)


def main(words: list[str]):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True, help="folder with adapter_config.json")
    parser.add_argument("--base", help="checkpoint it was trained on (default: the one it names)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(words)
    refuse_existing(args.out)
    for name in ("adapter_config.json", WEIGHTS):
        if not (Path(args.adapter) / name).is_file():
            raise ValueError(f"{args.adapter} is no adapter: it has no {name}.")
    try:
        base = args.base or PeftConfig.from_pretrained(args.adapter).base_model_name_or_path
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{args.adapter}/adapter_config.json is no configuration of PEFT's: {error}") from error
    merge(base, args.adapter, args.out, args.dtype)
    print(f"saved {args.out}")


if __name__ == "__main__":
    run_script(main)
