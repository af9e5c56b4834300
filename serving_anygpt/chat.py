"""`anygpt chat`: a conversation in the terminal, with files in both directions."""

import argparse
import sys
from pathlib import Path

import torch

from . import media
from .engine import Engine
from .requests import voice_block

HELP = """Type a message and press Enter. Commands:
  /image FILE    /speech FILE    /music FILE    add a file to your next message (Enter sends it without text)
  /to MODALITY   what answers may hold besides text: any, text, image, speech or music (now: {to})
  /voice FILE    the voice of spoken answers
  /out DIR       where answers that are not text go (now: {out})
  /new           forget the conversation      /quit (or Ctrl-D)"""


class Chat:
    """State of one conversation. `line` takes what the user typed and returns what to print."""

    def __init__(self, engine: Engine, names: list[str], out: str, voice: str | None):
        self.engine = engine
        self.names = names
        self.out = Path(out)
        self.voice = voice
        self.to = "any"
        self.messages: list[dict] = []
        self.attached: list[dict] = []
        self.turn = last_answer(self.out)

    def line(self, line: str) -> str:
        """Handles one typed line.

        Raises:
            ValueError, OSError: what is wrong with it, in a line; the conversation stays as it was.
            EOFError: the user wants to leave.
        """
        line = line.strip()
        if line.startswith("/"):
            return self.command(*line[1:].split(maxsplit=1))
        if not line and not self.attached:
            return HELP.format(to=self.to, out=self.out)
        return self.say(line)

    def command(self, name: str = "", value: str = "") -> str:
        if name in ("quit", "exit"):
            raise EOFError
        if name == "new":
            self.messages, self.attached = [], []
            return "A new conversation."
        if name == "to" and value in ("any", "text", *self.names):
            self.to = value
            return f"Answers may now hold {'anything' if value == 'any' else value}."
        if name == "to":
            raise ValueError(f"Unknown modality {value!r}. Known: any, text, {', '.join(self.names)}.")
        if name == "out" and value:
            self.out = media.writable_folder(value, create=True)
            self.turn = max(self.turn, last_answer(self.out))
            return f"Files go to {self.out}."
        if name == "voice" and value:
            self.voice = media.existing(value)
            return f"Spoken answers will sound like {value}."
        if name in self.names and value:
            self.attached.append({"type": name, "path": media.existing(value)})
            return f"Added {value}. Now a message, or Enter to send it."
        return HELP.format(to=self.to, out=self.out)

    def say(self, text: str) -> str:
        files, self.attached = self.attached, []  # one that cannot be read is not tried again with the next message
        if self.voice and self.to in ("any", "speech"):
            files = [voice_block(self.voice, self.engine.sampling_rate("speech")), *files]
        blocks = [self.engine.encoded(file) for file in files] + ([{"type": "text", "text": text}] if text else [])
        messages = [*self.messages, {"role": "user", "content": blocks}]
        allowed = {"any": ("text", *self.names), "text": ("text",)}.get(self.to, ("text", self.to))
        required = () if self.to in ("any", "text") else (self.to,)
        answer = self.engine.answer(messages, allowed, required, self.voice)
        self.turn += 1
        lines = []
        content = []
        for index, part in enumerate(answer.parts):
            if part.modality in ("text", "transcript"):
                lines.append(part.text if part.modality == "text" else f"(heard: {part.text})")
                content.append({"type": part.modality, "text": part.text})
            else:
                suffix = ".png" if hasattr(part, "image") else ".wav"
                lines.append(str(part.save(self.out / f"answer_{self.turn}_{index}{suffix}")))
                content.append({"type": part.modality, "codes": part.codes})
        self.messages = [*messages, {"role": "assistant", "content": content}]
        return "\n".join(lines) or "(no answer)"


def last_answer(folder: Path) -> int:
    """The highest number of an answer in a folder: those of another conversation are not written over."""
    numbers = [path.name.split("_")[1] for path in folder.glob("answer_*_*")]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def chat(arguments: argparse.Namespace, config: dict) -> None:
    """Runs the command until the input ends."""
    names = [row["name"] for row in config["modalities"]]
    engine = Engine(arguments.model)
    torch.manual_seed(arguments.seed)
    state = Chat(engine, names, arguments.out, arguments.voice)
    interactive = sys.stdin.isatty()
    if interactive:
        print(HELP.format(to=state.to, out=state.out), file=sys.stderr)
    while True:
        try:
            print(state.line(input("> " if interactive else "")))
        except EOFError:
            return
        except BrokenPipeError:  # nobody reads the answers
            raise
        except (ValueError, OSError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
