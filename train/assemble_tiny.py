"""Put the trained language model beside its codecs: the folder that `from_pretrained` and the command line load.

  python train/assemble_tiny.py --lm runs/sft --tokenizer data/tiny/model --out modeling_anygpt/pretrained/anygpt_tiny

The codecs' trainers write their own subfolders of OUT (image_codec, speech_codec, soundstorm, music_codec). The
sampling presets of `configs/tiny_generation.yaml` become generation_config.json.
"""

import argparse
import json
from pathlib import Path

import torch
from codec_files import whole_files
from settings import read_yaml_file, run_script
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from modeling_anygpt import AnyGPTConfig
from processing_anygpt import AnyGPTProcessor
from processing_anygpt.codec_shelf import load_whole
from processing_anygpt.instructions import openings
from processing_anygpt.tiny_world import language


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm", required=True, nargs="+", help="output folder of train/lm.py; of several, their mean")
    parser.add_argument("--tokenizer", required=True, help="model folder of make_tiny_data.py")
    parser.add_argument("--presets", type=Path, default=Path(__file__).parent / "configs/tiny_generation.yaml")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(words)
    settings = read_yaml_file(args.presets)
    if not isinstance(settings, dict) or not isinstance(settings.get("read_back"), dict):
        raise ValueError(f"{args.presets} holds no presets: read_back is missing. See configs/tiny_generation.yaml.")
    for folder in args.lm:
        kind = AutoConfig.from_pretrained(folder)
        if not isinstance(kind, AnyGPTConfig):
            raise ValueError(f"{folder} holds a model of type {kind.model_type!r}, allowed: train/lm.py's output.")
    model = mean_of([load_whole(AutoModelForCausalLM, folder, dtype=torch.float32) for folder in args.lm])
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    model.config.assign_token_ids(tokenizer)
    for name, read_back in settings["read_back"].items():
        wordings = language.INSTRUCTIONS["text", name]
        read_back |= {"instruction": language.READ_BACK, "openings": openings(wordings)}
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=tokenizer.pad_token_id, **settings
    )
    rows = [spec.to_dict() for spec in model.config.modalities]
    args.out.mkdir(parents=True, exist_ok=True)
    with whole_files(args.out) as temporary:
        model.save_pretrained(temporary)
        AnyGPTProcessor(tokenizer, rows).save_pretrained(temporary)
        drop_code_copies(temporary)
    print(f"{args.out}: {sum(f.stat().st_size for f in args.out.rglob('*') if f.is_file()) / 1e6:.1f} MB")


def mean_of(models: list[PreTrainedModel]) -> PreTrainedModel:
    """The first model with the mean of all weights: runs that went on from one another agree better than each alone
    (M. Wortsman et al. 2022, "Model soups")."""
    states = [model.state_dict() for model in models]
    if any(shapes(model) != shapes(models[0]) for model in models):
        raise ValueError("Got models of different weights, allowed: models of one shape have a mean.")
    models[0].load_state_dict({name: sum(state[name] for state in states) / len(states) for name in states[0]})
    return models[0]


def shapes(model: PreTrainedModel) -> dict:
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def drop_code_copies(folder: Path):
    """`save_pretrained` exports code for `trust_remote_code`; inside the package that would be a second copy."""
    for path in folder.glob("*.py"):
        path.unlink()
    for path in folder.glob("*.json"):
        settings = json.loads(path.read_text())
        if settings.pop("auto_map", None):
            path.write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    run_script(main)
