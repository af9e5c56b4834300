"""`anygpt demo`: every task on the example files, shown on one self-contained web page.

A task is what a user would type; the page shows that command beside its result.
"""

import argparse
import base64
import io
import json
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jinja2
import soundfile
import torch
from PIL import Image

from processing_anygpt.media import load_audio, load_image

from . import __version__, media
from .engine import Answer, Engine
from .generate import ask
from .spectrogram import spectrogram_png

REPOSITORY_EXAMPLES = Path(__file__).parent.parent / "examples"


@dataclass(frozen=True)
class Task:
    """One row of the page. `inputs` and `voice` are as on the command line, files relative to the examples folder;
    `expected`: what a person would answer, where there is one right answer."""

    title: str
    to: str
    inputs: tuple[str, ...]
    voice: str | None = None
    expected: str | None = None


# No sentence, picture or tune of these was in the training data.
TASKS = [
    Task("Transcribe a recording", "text", ("recording.wav",), expected="the horse wants the apple tomorrow"),
    Task("Transcribe digits read by a human", "text", ("digits.wav",), expected="one three nine eight"),
    Task("Speak in a given voice", "speech", ("the dog wants the tree tomorrow",), voice="voice.wav"),
    Task(
        "Describe a picture",
        "text",
        ("picture_pair.png",),
        expected="a big red triangle above a small red cross",
    ),
    Task("Draw a picture", "image", ("a big blue heart below a big yellow heart",)),
    Task("Describe a tune", "text", ("music:tune_flute.wav",), expected="a steady happy tune on the flute going up"),
    Task("Play a tune", "music", ("a slow happy tune on the guitar going up",)),
    Task("Answer a spoken request with a picture", "image", ("request_picture.wav",), expected="a big blue star"),
    Task(
        "Answer a spoken request with music",
        "music",
        ("request_tune.wav",),
        expected="a fast happy tune on the trumpet going down",
    ),
    Task("Answer a spoken request aloud", "speech", ("request_speech.wav",), expected="the big dog finds the table"),
]


def in_folder(value: str, folder: Path) -> str:
    """An input of a task with its file, if it is one, looked up in `folder`; a modality prefix stays in front."""
    prefix, _, name = value.rpartition(":")
    return f"{prefix}:{folder / name}" if prefix else str(folder / value) if Path(value).suffix else value


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def show_picture(image: Image.Image) -> dict:
    """Enlarged smoothly, so that 64 px look like a picture and not like tiles."""
    scale = max(1, 320 // max(image.size))
    buffer = io.BytesIO()
    image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC).save(buffer, "png")
    return {"kind": "image", "source": data_uri("image/png", buffer.getvalue())}


def show_sound(waveform, sampling_rate: int, wav: bytes) -> dict:
    return {
        "kind": "sound",
        "source": data_uri("audio/wav", wav),
        "spectrogram": data_uri("image/png", spectrogram_png(waveform, sampling_rate)),
        "caption": f"{len(waveform) / sampling_rate:.1f} s",
    }


def show_block(block: dict, label: str = "") -> dict:
    """A content block of the request, for the page."""
    if block["type"] == "text":
        return {"kind": "text", "text": block["text"], "label": label}
    if block["type"] == "image":
        return {**show_picture(load_image(block["path"])), "label": label}
    waveform = load_audio(block["path"], 16000)
    return {**show_sound(waveform, 16000, wav_bytes(waveform, 16000)), "label": label}


def show_part(part) -> dict:
    """A part of the reply, for the page."""
    if part.modality == "text":
        return {"kind": "text", "text": part.text, "label": ""}
    if part.modality == "transcript":
        return {"kind": "text", "text": part.text, "label": "heard"}
    if hasattr(part, "image"):
        return {**show_picture(part.image), "label": ""}
    return {**show_sound(part.waveform, part.sampling_rate, wav_bytes(part.waveform, part.sampling_rate)), "label": ""}


def wav_bytes(waveform, sampling_rate: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sampling_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def command_line(task: Task) -> str:
    """The command that does this task alone, from the root of the repository."""
    words = ["anygpt", "generate", "--to", task.to]
    words += [in_folder(value, Path("examples")) for value in task.inputs]
    words += ["--voice", in_folder(task.voice, Path("examples"))] if task.voice else []
    return shlex.join(words)


def modalities_of(task: Task, folder: Path) -> set[str]:
    """What a model must know for a task. Raises FileNotFoundError if one of its files is missing."""
    if task.voice:
        media.existing(in_folder(task.voice, folder))
    blocks = [media.as_block(in_folder(value, folder), ["image", "speech", "music"]) for value in task.inputs]
    return {task.to, *(block["type"] for block in blocks)} - {"text"}


def run_task(engine: Engine, task: Task, folder: Path, names: list[str], seed: int) -> tuple[Answer, dict]:
    """Does one task; the answer and its row of the page."""
    blocks = [media.as_block(in_folder(value, folder), names) for value in task.inputs]
    voice = in_folder(task.voice, folder) if task.voice else None
    shown = [show_block(block) for block in blocks]
    if voice:
        shown.append(show_block({"type": "speech", "path": voice}, "in this voice"))
    answer = ask(engine, blocks, task.to, voice, seed)
    row = {
        "title": task.title,
        "command": command_line(task),
        "inputs": shown,
        "outputs": [show_part(part) for part in answer.parts],
        "expected": task.expected,
        "seconds": answer.seconds,
        "tokens_in": answer.tokens_in,
        "tokens_out": answer.tokens_out,
    }
    return answer, row


def model_facts(engine: Engine, folder: Path, config: dict) -> list[tuple[str, str]]:
    """What a reader wants to know about the model, counted and not quoted."""
    parameters = sum(weight.numel() for weight in engine.model.parameters())
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6
    rows = [f"{row['name']} {row['codebook_size'] * row['num_codebooks']}" for row in config["modalities"]]
    return [
        ("model", folder.name.replace("_", "-")),
        ("language model", f"{parameters / 1e6:.1f} M parameters"),
        ("all weights with codecs", f"{size:.0f} MB"),
        ("codes in its vocabulary", ", ".join(rows)),
        ("run on", f"{engine.model.device.type}, threads: {torch.get_num_threads()}, torch {torch.__version__}"),
    ]


def demo(arguments: argparse.Namespace, config: dict) -> None:
    """Runs the command: every task, then the page."""
    folder = Path(arguments.examples or ("examples" if Path("examples").is_dir() else REPOSITORY_EXAMPLES))
    if not folder.is_dir():
        raise ValueError(f"No folder {folder} with example files. Run in the repository, or give --examples DIR.")
    names = [row["name"] for row in config["modalities"]]
    tasks = [task for task in TASKS if modalities_of(task, folder) <= set(names)]
    if not tasks:
        raise ValueError(f"No task of the demo is for a model of {', '.join(names)} alone.")
    start = time.perf_counter()
    engine = Engine(arguments.model, arguments.json)
    engine.quiet = True  # a line for each task is progress enough
    rows = []
    for number, task in enumerate(tasks, 1):
        if not arguments.json:
            print(f"[{number}/{len(tasks)}] {task.title} ...", end=" ", file=sys.stderr, flush=True)
        answer, row = run_task(engine, task, folder, names, arguments.seed)
        rows.append(row)
        heard = " | ".join(f"{part.text!r}" if hasattr(part, "text") else repr(part) for part in answer.parts)
        if arguments.json:
            record = {"task": task.title, "answer": heard, "seconds": round(answer.seconds, 3)}
            print(json.dumps(record, ensure_ascii=False), flush=True)
        else:
            print(f"{answer.seconds:.1f} s  {heard}", file=sys.stderr)
    template = Path(__file__).parent / "templates" / "demo.html"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(template.read_text(encoding="utf-8")).render(
        rows=rows,
        facts=model_facts(engine, Path(arguments.model), config),
        seconds=time.perf_counter() - start,
        version=__version__,
    )
    path = media.write_atomic(Path(arguments.out) / "index.html", lambda path: path.write_text(page, encoding="utf-8"))
    print(json.dumps({"file": str(path)}) if arguments.json else path)
