"""Inputs of the command line -> the messages of one request.

The wording of an instruction is the training data's (`INSTRUCTIONS` of processing_anygpt.tiny_world.language) for the
embedded checkpoint, that of its `prompts.json` for a checkpoint that has one, and a plain sentence for any other.
"""

import json
from pathlib import Path

from processing_anygpt.instructions import opening_of, openings
from processing_anygpt.media import load_audio
from processing_anygpt.tiny_world.language import INSTRUCTIONS

from .media import DEFAULT_MODEL, read_text

GENERAL_INSTRUCTIONS = {
    ("speech", "text"): ["Transcribe this recording."],
    ("text", "speech"): ["Read this aloud: {text}"],
    ("image", "text"): ["Describe this picture."],
    ("text", "image"): ["Draw a picture of this: {text}"],
    ("music", "text"): ["Describe this music."],
    ("text", "music"): ["Compose music like this: {text}"],
}
# The released base model was trained with "{instruction} This is input: {text}".
BASE_INSTRUCTIONS = GENERAL_INSTRUCTIONS | {
    ("text", "speech"): ["Read this aloud. This is input: {text}"],
    ("text", "image"): ["Draw a picture of this. This is input: {text}"],
    ("text", "music"): ["Compose music like this. This is input: {text}"],
}
PROMPTS_FILE = "prompts.json"  # in a checkpoint folder
VOICE_SECONDS = 1.0  # of the voice prompt, heard by the language model


def compose(blocks: list[dict], to: str, instructions: dict = INSTRUCTIONS) -> list[dict]:
    """The content of the user's turn that asks for `to`, from the INPUTs in their order.

    Media and text: the text is the instruction, taken as it is; one of `instructions` goes before the media, as it did
    in training. Media alone: the default instruction of its type; without one (a spoken request for a picture, say)
    the media speaks for itself. Text alone: the default instruction filled with it, unless the text is phrased as one
    already ("draw a red circle").
    """
    media = [block for block in blocks if block["type"] != "text"]
    texts = [block["text"] for block in blocks if block["type"] == "text"]
    wording = instructions.get((media[0]["type"], to), []) if media else []
    if media and texts:
        return blocks if texts[0] not in wording else sorted(blocks, key=lambda block: block["type"] != "text")
    if media:
        return [{"type": "text", "text": line} for line in wording[:1]] + media
    text = " ".join(texts)
    wording = instructions.get(("text", to), ["{text}"])
    if opening_of(text, openings(wording)):
        return [{"type": "text", "text": text}]
    return [{"type": "text", "text": wording[0].replace("{text}", text)}]


def voice_block(path: str, sampling_rate: int) -> dict:
    """The first second of a voice prompt as a speech block: what tells the language model who is to speak."""
    waveform = load_audio(path, sampling_rate)[: round(VOICE_SECONDS * sampling_rate)]
    return {"type": "speech", "audio": waveform, "sampling_rate": sampling_rate}


def instructions_of(folder: str) -> dict:
    """The instruction sentences that a checkpoint is asked with: {(from, to): [sentence, ...]}."""
    if Path(folder).resolve() == DEFAULT_MODEL.resolve():
        return INSTRUCTIONS
    path = Path(folder) / PROMPTS_FILE
    return read_prompts(path).get("instructions", {}) if path.is_file() else GENERAL_INSTRUCTIONS


def read_prompts(path: str | Path) -> dict:
    """A file of prompts: `{"system": str, "instructions": {"speech": {"text": [sentence, ...]}, ...}}`, both optional.

    Sentences go from one modality to another; those from text hold "{text}" once, where the text goes.

    Returns:
        The same, the instructions keyed by (from, to).

    Raises:
        ValueError: no such file, or another structure.
    """
    if not Path(path).is_file():
        raise ValueError(f"No such file: {path}.")
    try:
        content = json.loads(read_text(str(path)))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from None
    example = '{"system": "...", "instructions": {"text": {"speech": ["Say: {text}"]}}}'
    wrong = ValueError(f"{path} is not a file of prompts, which look like {example}.")
    if not isinstance(content, dict) or set(content) - {"system", "instructions"}:
        raise wrong
    prompts = {}
    if "system" in content:
        prompts["system"] = content["system"]
        if not isinstance(content["system"], str):
            raise wrong
    if "instructions" in content:
        prompts["instructions"] = {}
        if not isinstance(content["instructions"], dict):
            raise wrong
        for source, targets in content["instructions"].items():
            if not isinstance(targets, dict):
                raise wrong
            for target, sentences in targets.items():
                if not isinstance(sentences, list) or not sentences or not all(isinstance(s, str) for s in sentences):
                    raise wrong
                for sentence in sentences:
                    if sentence.count("{text}") != (source == "text"):
                        raise ValueError(
                            f"{path}: {sentence!r} must hold {{text}} exactly once if it goes from text, else never."
                        )
                prompts["instructions"][source, target] = sentences
    return prompts


def write_prompts(instructions: dict, path: Path) -> None:
    """Writes instruction sentences, keyed by (from, to), as `read_prompts` reads them."""
    nested: dict = {}
    for (source, target), sentences in instructions.items():
        nested.setdefault(source, {})[target] = list(sentences)
    text = json.dumps({"instructions": nested}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
