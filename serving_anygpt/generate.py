"""`anygpt generate`: one question from the command line, one answer in the modality asked for."""

import argparse
import json

import torch

from . import media
from .engine import Answer, Engine
from .requests import compose, voice_block


def ask(
    engine: Engine,
    blocks: list[dict],
    to: str,
    voice: str | None = None,
    seed: int = 0,
    candidates: int | None = None,
) -> Answer:
    """Asks `engine` for `to`, given content blocks. The demo and the tests use it as the command does.

    A typed request is answered by the thing itself; after a spoken one the model may first write what it heard, and
    what it says it may write.
    """
    torch.manual_seed(seed)
    content = compose(blocks, to, engine.instructions)
    if voice is not None and to == "speech":
        content = [voice_block(voice, engine.sampling_rate(to)), *content]
    silent = all(block["type"] == "text" for block in blocks) and to != "speech"
    allowed = (to,) if silent or to == "text" else ("text", to)
    required = () if to == "text" else (to,)
    return engine.answer([{"role": "user", "content": content}], allowed, required, voice, candidates)


def find_part(answer: Answer, modality: str):
    """The first part of `modality`; None if the reply has none."""
    return next((part for part in answer.parts if part.modality == modality), None)


def generate(arguments: argparse.Namespace, config: dict, blocks: list[dict]) -> None:
    """Runs the command. Text goes to standard output, everything else to a file whose name is printed."""
    engine = Engine(arguments.model, arguments.json)
    if arguments.max_seconds:
        engine.limit_seconds(arguments.to, arguments.max_seconds)
    answer = ask(engine, blocks, arguments.to, arguments.voice, arguments.seed, arguments.candidates)
    part = find_part(answer, arguments.to)
    record = {"to": arguments.to, "seconds": round(answer.seconds, 3), "tokens": [answer.tokens_in, answer.tokens_out]}
    if transcript := find_part(answer, "transcript"):
        record["heard"] = transcript.text
    if arguments.to == "text":
        record["text"] = part.text if part else ""
        if arguments.out:
            media.write_atomic(arguments.out, lambda path: path.write_text(record["text"] + "\n", encoding="utf-8"))
            record["file"] = str(arguments.out)
    else:
        record["file"] = str(part.save(arguments.out))
        if text := find_part(answer, "text"):
            record["text"] = text.text
    if arguments.json:
        print(json.dumps(record, ensure_ascii=False))
    else:
        print(record["file"] if arguments.out else record["text"])
