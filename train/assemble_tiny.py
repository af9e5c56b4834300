"""Put the trained language model beside its codecs: the folder that `from_pretrained` and the command line load.

  python train/assemble_tiny.py --lm runs/sft --tokenizer data/tiny/model --out modeling_anygpt/pretrained/anygpt_tiny

The codecs' trainers write their own subfolders of OUT (image_codec, speech_codec, soundstorm, music_codec). The
sampling presets of `configs/tiny_generation.yaml` become generation_config.json.
"""

import argparse
import json
from pathlib import Path

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

import modeling_anygpt  # noqa: F401  registers AnyGPT with the Auto classes
from processing_anygpt import AnyGPTProcessor
from processing_anygpt.instructions import openings
from processing_anygpt.tiny_world import language


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm", required=True, nargs="+", help="output folder of train/lm.py; of several, their mean")
    parser.add_argument("--tokenizer", required=True, help="model folder of make_tiny_data.py")
    parser.add_argument("--presets", type=Path, default=Path(__file__).parent / "configs/tiny_generation.yaml")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    model = mean_of([AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in args.lm])
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    model.config.assign_token_ids(tokenizer)
    settings = yaml.safe_load(args.presets.read_text())
    for name, read_back in settings["read_back"].items():
        wordings = language.INSTRUCTIONS["text", name]
        read_back |= {"instruction": language.READ_BACK, "openings": openings(wordings)}
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=tokenizer.pad_token_id, **settings
    )
    model.save_pretrained(args.out)
    rows = [spec.to_dict() for spec in model.config.modalities]
    AnyGPTProcessor(tokenizer, rows).save_pretrained(args.out)
    drop_code_copies(Path(args.out))
    print(f"{args.out}: {sum(f.stat().st_size for f in Path(args.out).rglob('*') if f.is_file()) / 1e6:.1f} MB")


def mean_of(models: list[PreTrainedModel]) -> PreTrainedModel:
    """The first model with the mean of all weights: runs that went on from one another agree better than each alone
    (M. Wortsman et al. 2022, "Model soups")."""
    states = [model.state_dict() for model in models]
    models[0].load_state_dict({name: sum(state[name] for state in states) / len(states) for name in states[0]})
    return models[0]


def drop_code_copies(folder: Path):
    """`save_pretrained` exports code for `trust_remote_code`; inside the package that would be a second copy."""
    for path in folder.glob("*.py"):
        path.unlink()
    for path in folder.glob("*.json"):
        settings = json.loads(path.read_text())
        if settings.pop("auto_map", None):
            path.write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    main()
