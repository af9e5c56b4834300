"""The released SpeechTokenizer (ZhangXInFD/SpeechTokenizer): `config.json` and `ckpt.dev` or `SpeechTokenizer.pt`.

The same tensors exist in two layouts, by the version of torch that wrote them: `weight_g` and `weight_v` of the old
weight norm, `parametrizations.weight.original0` and `original1` of the new one. Ours is the old one.
"""

import json
from pathlib import Path

from ..codecs import SpeechTokenizerConfig, SpeechTokenizerModel
from .pickles import build, check_tensors, meta_shapes, read_pickle

CHECKPOINT_NAMES = ("ckpt.dev", "SpeechTokenizer.pt")
# Official names of the settings that ours renames, and those without which a file is no SpeechTokenizer's.
OFFICIAL_NAMES = {"sampling_rate": "sample_rate", "num_codebooks": "n_q"}
NEEDED = ("strides", "n_filters", "dimension", "codebook_size", "n_q", "sample_rate")
# Buffers that only codebook training needs.
TRAINING_BUFFERS = ("inited", "cluster_size", "embed_avg")
NEW_WEIGHT_NORM = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def find_official(folder: str | Path) -> tuple[Path, Path]:
    """-> config.json and the checkpoint of a folder. Raises ValueError unless there is exactly one of each."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"No such folder: {folder}. Give the one with config.json and {CHECKPOINT_NAMES[0]}.")
    found = [folder / name for name in CHECKPOINT_NAMES if (folder / name).exists()]
    if len(found) != 1 or not (folder / "config.json").is_file():
        names = sorted(path.name for path in folder.iterdir())[:6]
        raise ValueError(
            f"{folder} needs config.json and one of {' or '.join(CHECKPOINT_NAMES)}, it has: {', '.join(names)}."
        )
    return folder / "config.json", found[0]


def read_official(config_json: str | Path, checkpoint: str | Path) -> tuple[SpeechTokenizerConfig, dict]:
    """Configuration, and tensors by our names, memory-mapped. Raises ValueError unless they belong together."""
    try:
        official = json.loads(Path(config_json).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{config_json} is not valid JSON ({error}).") from None
    if not isinstance(official, dict) or not set(NEEDED) <= set(official):
        raise ValueError(f"{config_json} is not the config.json of a SpeechTokenizer: it needs {', '.join(NEEDED)}.")
    names = {name: OFFICIAL_NAMES.get(name, name) for name in SpeechTokenizerConfig.__annotations__}
    config = SpeechTokenizerConfig(**{ours: official[name] for ours, name in names.items() if name in official})
    tensors = {}
    for key, value in read_pickle(checkpoint).items():
        if key.rsplit(".", 1)[-1] not in TRAINING_BUFFERS:
            for new, old in NEW_WEIGHT_NORM.items():
                key = key.replace(new, old)
            tensors[key] = value
    check_tensors(
        tensors,
        meta_shapes(SpeechTokenizerModel, config),
        f"{checkpoint} does not hold the SpeechTokenizer that {config_json} describes",
    )
    return config, tensors


def load_official(config_json: str | Path, checkpoint: str | Path) -> SpeechTokenizerModel:
    """The released model (float16 or float32 tensors), in float32 and eval mode.

    Raises:
        ValueError: unreadable files, a pickle with code in it, tensors that lack, are unknown or misshapen.
    """
    return build(SpeechTokenizerModel, *read_official(config_json, checkpoint))
