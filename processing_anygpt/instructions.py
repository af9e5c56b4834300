"""Instructions of alignment rows: "Describe this picture.", "Read this aloud: {text}".

The sentences are data, in instructions.yaml beside this file: a list for every direction, "speech->text",
"text->image", ...; "any->text" and "text->any" are for modalities that have none.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import yaml

DEFAULT = Path(__file__).with_name("instructions.yaml")
Instructions = dict[str, list[str]]


def load_instructions(modalities: Sequence[str], file: str | os.PathLike | None = None) -> Instructions:
    """The instructions of both directions of every modality.

    Args:
        modalities: names of the modality table.
        file: YAML of the form of instructions.yaml; the directions in it replace the project's own.

    Raises:
        ValueError: not such a file, a direction that is none of this table, `{text}` missing or where no text goes.
    """
    instructions = yaml.safe_load(DEFAULT.read_text(encoding="utf-8"))
    directions = [d for name in modalities for d in (f"{name}->text", f"text->{name}")]
    if file is not None:
        own = _read(Path(file))
        for direction, sentences in own.items():
            _check(direction, sentences, [*directions, "any->text", "text->any"], file)
        instructions |= own
    found = {}
    for name in modalities:
        for direction, general in ((f"{name}->text", "any->text"), (f"text->{name}", "text->any")):
            sentences = instructions.get(direction) or instructions[general]
            found[direction] = [sentence.replace("{modality}", name) for sentence in sentences]
    return found


def choose(instructions: Instructions, direction: str, seed: int, source: str) -> str:
    """The instruction of one row: the same in every run with the same seed, all equally likely."""
    sentences = instructions[direction]
    return sentences[draw(seed, source, direction) % len(sentences)]


def draw(seed: int, *names: str) -> int:
    """A number of 64 bits that depends on nothing but the arguments."""
    text = "\0".join([str(seed), *names])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _read(file: Path) -> Instructions:
    try:
        own = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"Can't read the instructions in {file}: {error}") from None
    if not isinstance(own, dict) or not own:
        raise ValueError(f"{file} holds no instructions. It needs lists by direction, as {DEFAULT.name} has them.")
    return own


def _check(direction: str, sentences: object, known: Sequence[str], file: str | os.PathLike) -> None:
    if direction not in known:
        raise ValueError(f"Unknown direction {direction!r} in {file}. Known: {', '.join(known)}.")
    if not isinstance(sentences, list) or not sentences or not all(isinstance(s, str) and s for s in sentences):
        raise ValueError(f"{direction} in {file} needs a list of at least one sentence (quote those with a colon).")
    for sentence in sentences:
        if sentence.count("{text}") != direction.startswith("text->"):
            wanted = "{text} exactly once" if direction.startswith("text->") else "no {text}: the text is the answer"
            raise ValueError(f"{direction} in {file} needs {wanted}, got {sentence!r}.")


def openings(wordings: Sequence[str]) -> list[str]:
    """How requests begin: the words before `{text}` in each sentence, in lower case, without a colon at their end."""
    return [line.partition("{text}")[0].strip().lower().rstrip(":") for line in wordings]


def opening_of(request: str, begun: Sequence[str]) -> str:
    """The longest of the openings `begun` with which a request begins, followed by a colon or not; "" if none."""
    found = (end for words in begun if words for end in (words, f"{words}:") if request.lower().startswith(f"{end} "))
    return max(found, key=len, default="")
