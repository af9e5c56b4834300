"""What two texts are told apart by: normalisers for error rates."""

import functools
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

NORMALISERS = ("none", "basic", "whisper_english")


def normaliser(name: str, spelling: str | os.PathLike | None = None) -> Callable[[str], str]:
    """text -> text.

    Args:
        name: "none"; "basic", Whisper's for all languages (lower case, no punctuation, no brackets); or
            "whisper_english", which also spells out contractions, writes numbers as digits and British words as
            American (Radford et al. 2022, appendix C). Both are transformers' own classes.
        spelling: JSON file British word -> American word, the `normalizer.json` of any Whisper checkpoint. Default:
            the same list in the wheel `whisper-normalizer`; transformers carries the code without it.
    """
    if name not in NORMALISERS:
        raise ValueError(f"Got normaliser {name!r}; allowed are {', '.join(NORMALISERS)}.")
    if name == "none":
        return str
    if name == "basic":
        return BasicTextNormalizer()
    return EnglishTextNormalizer(_spellings(spelling if spelling is not None else _installed_spellings()))


def _installed_spellings() -> Path:
    package = importlib.util.find_spec("whisper_normalizer")
    if package is None:
        raise ValueError(
            "whisper_english needs British spellings: `pip install whisper-normalizer`, or give `spelling`."
        )
    return Path(package.origin).parent / "normalizers" / "english.json"


@functools.cache
def _spellings(file: str | os.PathLike) -> dict[str, str]:
    try:
        words = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Can't read the spellings {file}: {error}. Give Whisper's normalizer.json.") from None
    if not isinstance(words, dict):
        raise ValueError(f"{file} holds a JSON {type(words).__name__}, no spellings. Give Whisper's normalizer.json.")
    return words


def normalised_pairs(
    predictions: Sequence[str], references: Sequence[str], name: str, spelling: str | os.PathLike | None
) -> list[tuple[str, str]]:
    """(reference, prediction) of every item, normalised.

    Raises:
        ValueError: no items, or a reference of which nothing is left: its errors would have nothing to be divided by.
    """
    if not references:
        raise ValueError("Got no texts; give at least one prediction and its reference.")
    write = normaliser(name, spelling)
    pairs = [(write(said), write(heard)) for said, heard in zip(references, predictions, strict=True)]
    for index, (said, _) in enumerate(pairs):
        if not said.strip():
            raise ValueError(
                f"Reference {index} ({references[index]!r}) is empty, normalised by {name}. Leave this item out."
            )
    return pairs
