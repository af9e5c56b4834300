"""What is judged: a checkpoint, what its codecs alone keep of the right answer, the right answer, and broken models.

  FOLDER                  a checkpoint, asked as the protocol says
  first:FOLDER            the same, its first reply in place of the best of several that it would choose
  codec:FOLDER            the right answer through the checkpoint's codec, no language model: its ceiling
  original                the right answer itself
  broken:shuffled:FOLDER  shuffled codes: of what the model is shown, or of the right answer where it is shown text
  broken:constant         the same answer to everything: the right one of the first item
  broken:silence          nothing: no words, a second of silence, a white picture

`NAME=` before any of them names it in tables.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from checkpoints import fingerprint
from PIL import Image
from protocol import TASKS, Protocol

from examples import Example, picture, sound, target_of
from modeling_anygpt.configuration_anygpt import AnyGPTConfig
from modeling_anygpt.conversion.llm import read_json
from processing_anygpt import codec_io, generate_best
from processing_anygpt.codec_shelf import load_whole
from processing_anygpt.read_back import settings_of
from processing_anygpt.vocabulary import find_modality

SILENCE = (np.zeros(16_000, np.float32), 16_000)  # a second, and its Hz


@dataclass
class Output:
    """An answer. `medium`: `(waveform [T], Hz)` or a PIL image. `problem`: why there is none. `ids`: of the reply."""

    text: str = ""
    transcript: str = ""
    medium: Any = None
    problem: str | None = None
    ids: list[int] | None = None


def request_of(protocol: Protocol, example: Example) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a reply may hold and what it must: arguments of `generate`."""
    if isinstance(example.to, tuple):
        return example.to, ()
    target = target_of(protocol, example)
    if target == "text":
        return ("text",), ()
    return (("text", target) if protocol.task == "speech_chat" else (target,)), (target,)


def nothing(target: str) -> Any:
    """The medium of an answer that has none."""
    if target == "image":
        return Image.new("RGB", (64, 64), "white")
    return None if target == "text" else SILENCE


class System:
    """What all have: a `name`, a `kind` of `protocol.SYSTEM_KINDS`, and these."""

    def describe(self) -> dict:
        """What identifies it, for the result file."""
        return {}

    def handles(self, protocol: Protocol, examples: list[Example]) -> bool:
        """Whether the protocol means anything for it."""
        return protocol.target != "any"

    def prepare(self, protocol: Protocol, examples: list[Example]) -> None:
        """Called with all examples of a protocol before the first is answered."""

    def answer(self, protocol: Protocol, batch: list[Example], seed: int) -> list[Output]:
        """Answers to examples that ask for the same modalities."""
        raise NotImplementedError


class Model(System):
    """A checkpoint folder.

    Args:
        shuffled: shuffle the codes of what it is shown.
        candidates: replies to choose from; None: what the checkpoint says. With 1 it is of another kind, "first".
    """

    def __init__(
        self,
        name: str,
        folder: str,
        device: torch.device,
        dtype: str = "auto",
        shuffled: bool = False,
        candidates: int | None = None,
    ):
        self.name, self.folder, self.device, self.shuffled = name, Path(folder), device, shuffled
        self.candidates = candidates
        self.kind = "broken" if shuffled else "first" if candidates == 1 else "model"
        if not (self.folder / "config.json").is_file():
            raise ValueError(f"{folder} is no checkpoint folder: it has no config.json.")
        transformers.utils.logging.disable_progress_bar()
        self.processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True).to(device)
        self.model = load_whole(transformers.AutoModelForCausalLM, folder, local_files_only=True, dtype=dtype)
        self.model.to(device).eval()

    def describe(self) -> dict:
        count = sum(weight.numel() for weight in self.model.parameters())
        about = {"parameters": count, "dtype": str(self.model.dtype), "fingerprint": fingerprint(self.folder)}
        return about | ({"candidates": self.candidates} if self.candidates else {})

    def handles(self, protocol: Protocol, examples: list[Example]) -> bool:
        return self.kind != "first" or protocol.target not in ("text", "any")  # there it is the model itself

    @torch.inference_mode()
    def answer(self, protocol: Protocol, batch: list[Example], seed: int) -> list[Output]:
        torch.manual_seed(seed)
        ids = self.processor.apply_chat_template(
            [[{"role": "user", "content": content}] for content in self.contents(protocol, batch, seed)],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        ).to(self.device)  # fmt: skip
        allowed, required = request_of(protocol, batch[0])
        decoding = {key: value for key, value in protocol.decoding.items() if key not in ("batch", "decoder_steps")}
        # Words are not chosen among, and malformed replies ("any") not chosen away.
        candidates = 1 if target_of(protocol, batch[0]) in ("text", "any") else self.candidates
        stored = settings_of(self.model.generation_config, required).get("candidates", 1)
        if (candidates or stored) > 1 and decoding.get("do_sample"):
            del decoding["do_sample"]  # candidates are always sampled, and need not be told to
        output = generate_best(
            self.model, self.processor, **ids, candidates=candidates,
            output_modalities=allowed, required_modalities=required, **decoding,
        )  # fmt: skip
        replies = output[:, ids["input_ids"].shape[1] :].tolist()
        return [self.output(protocol, example, reply) for example, reply in zip(batch, replies, strict=True)]

    def contents(self, protocol: Protocol, batch: list[Example], seed: int) -> list[list[dict]]:
        """The user's turn of each example: the protocol's prompt with its media as codes."""
        columns = []
        for block in protocol.prompt:
            if isinstance(block, str):
                texts = [block.replace("{text}", example.texts[0]) for example in batch]
                columns.append([{"type": "text", "text": text} for text in texts])
                continue
            block = dict(block)
            seconds = block.pop("seconds", None)
            ((modality, field),) = block.items()
            media = [getattr(example, field) for example in batch]
            if seconds is not None:
                media = [(wave[: round(seconds * rate)], rate) for wave, rate in map(sound, media)]
            codes = self.processor.encode_media(modality, media)
            if self.shuffled:
                codes = shuffle(codes, find_modality(self.processor.specs, modality).codebook_size, seed)
            columns.append([{"type": modality, "codes": c} for c in codes])
        return [list(row) for row in zip(*columns, strict=True)]

    def output(self, protocol: Protocol, example: Example, reply: list[int]) -> Output:
        target = target_of(protocol, example)
        if target == "any":  # judged by its ids alone
            return Output(ids=reply)
        voice = example.voice if target == "speech" else None
        parts: dict = {}
        for part in self.processor.parse_output(reply, voice=voice, steps=protocol.decoding.get("decoder_steps")):
            parts.setdefault(part.modality, part)
        made = Output(ids=reply)
        made.text = parts["text"].text.strip() if "text" in parts else ""
        made.transcript = parts["transcript"].text.strip() if "transcript" in parts else ""
        if target == "text":
            return made
        part = parts.get(target)
        made.problem = getattr(part, "problem", None if part else f"no {target} in the reply")
        if made.problem:
            made.medium = nothing(target)
        else:
            made.medium = part.image if target == "image" else (part.waveform, part.sampling_rate)
        return made


class Reference(System):
    """The right answer itself ("original"), or what the codecs of a checkpoint keep of it ("codec").

    Args:
        folder: the checkpoint; None: no codec.
        shuffled: shuffle the codes before they are decoded.
        processor: of the folder, where it is loaded already.
    """

    def __init__(
        self, name: str, folder: str | None = None, device: Any = "cpu", shuffled: bool = False, processor: Any = None
    ):
        self.name, self.folder, self.shuffled, self.processor = name, folder, shuffled, processor
        self.kind = "broken" if shuffled else "codec" if folder else "original"
        if folder and processor is None:
            self.processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True).to(device)

    def describe(self) -> dict:
        return {"fingerprint": fingerprint(Path(self.folder))} if self.folder else {}

    def handles(self, protocol: Protocol, examples: list[Example]) -> bool:
        return all(example.reference is not None for example in examples)

    def answer(self, protocol: Protocol, batch: list[Example], seed: int) -> list[Output]:
        target, media = target_of(protocol, batch[0]), [example.reference for example in batch]
        if self.folder:
            return [Output(medium=m) for m in self.through_codec(target, media, seed)]
        return [Output(medium=picture(m) if target == "image" else sound(m)) for m in media]

    def through_codec(self, modality: str, media: list, seed: int) -> list:
        """Media to codes (of speech: all codebooks, not only those that the language model sees) and back."""
        processor = self.processor
        spec = find_modality(processor.specs, modality)
        if modality == "image":
            codes = processor.encode_media(modality, media)
            codes = shuffle(codes, spec.codebook_size, seed) if self.shuffled else codes
            draws = torch.Generator().manual_seed(seed)
            return [part.image for part in processor.decode_codes(modality, codes, generator=draws)]
        waves = [sound(medium, spec.sampling_rate)[0] for medium in media]
        codes = codec_io.encode(processor.codec(modality), waves)
        codes = shuffle(codes, spec.codebook_size, seed) if self.shuffled else codes
        copies = codec_io.decode(processor.codec(modality), codes)
        return [(copy[: len(wave)], spec.sampling_rate) for copy, wave in zip(copies, waves, strict=True)]


class Shuffled(System):
    """Shuffled codes in every task: `Model` where media are shown, `Reference` where they are asked for."""

    kind = "broken"

    def __init__(self, name: str, folder: str, device: torch.device, dtype: str = "auto"):
        self.name = name
        self.model = Model(name, folder, device, dtype, shuffled=True)
        self.reference = Reference(name, folder, device, shuffled=True, processor=self.model.processor)

    def describe(self) -> dict:
        return self.model.describe()

    def answer(self, protocol: Protocol, batch: list[Example], seed: int) -> list[Output]:
        chosen = self.reference if TASKS[protocol.task][0] == "text" else self.model
        return chosen.answer(protocol, batch, seed)


class Constant(System):
    """The same answer to everything: the first example's right one, or ("silence") nothing at all."""

    kind = "broken"

    def __init__(self, name: str, silent: bool):
        self.name, self.silent, self.text, self.media = name, silent, "", {}

    def prepare(self, protocol: Protocol, examples: list[Example]) -> None:
        self.text, self.media = "" if self.silent else examples[0].texts[0], {}
        for example in examples:
            target, medium = target_of(protocol, example), example.reference
            if medium is None and target == TASKS[protocol.task][0]:  # a spoken answer: the question itself
                medium = example.given
            if target != "text" and target not in self.media:
                if self.silent or medium is None:
                    self.media[target] = nothing(target)
                else:
                    self.media[target] = picture(medium) if target == "image" else sound(medium)

    def answer(self, protocol: Protocol, batch: list[Example], seed: int) -> list[Output]:
        targets = [target_of(protocol, example) for example in batch]
        return [Output(self.text) if t == "text" else Output(medium=self.media[t]) for t in targets]


def parse(text: str) -> tuple[str, str, str | None]:
    """A system's words on the command line (see the top of this file) -> name, kind ("" is a checkpoint), folder.

    Raises:
        ValueError: no such kind, or no checkpoint of AnyGPT in the folder.
    """
    name, equals, what = text.partition("=")
    if not equals or {"/", ":"} & set(name):  # no name, but perhaps a folder with "=" in its own
        name, what = "", text
    if what in ("original", "broken:constant", "broken:silence"):
        name, kind, folder = name or what.split(":")[-1], what, None
    else:
        kind = next((kind for kind in ("first", "codec", "broken:shuffled") if what.startswith(f"{kind}:")), "")
        if not kind and what.startswith("broken:"):
            raise ValueError(
                f"Unknown system {what!r}. Known: broken:shuffled:FOLDER, broken:constant, broken:silence."
            )
        folder = what.removeprefix(f"{kind}:")
        name = name or "-".join(filter(None, (kind.split(":")[-1], Path(folder).resolve().name)))
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(
                f"{folder} is no checkpoint folder: it has no config.json. Systems are a folder, first:FOLDER, "
                "codec:FOLDER, original and broken:..., each with NAME= before it or not."
            )
        model = read_json(Path(folder) / "config.json").get("model_type")
        if model != AnyGPTConfig.model_type:
            raise ValueError(f"{folder} holds a {model!r} model, need an AnyGPT checkpoint: `anygpt init` grows one.")
    return name, kind, folder


def check(words: list[str], out: Path) -> None:
    """Whether all systems of a command line can be run: said before the first is, not after.

    Raises:
        ValueError: as `parse`; two of one name; results inside a checkpoint, of whose fingerprint they would be part.
    """
    parsed = [parse(text) for text in words]
    names = [name for name, _, _ in parsed]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"Got two systems called {twice[0]!r}, whose results would be one file. Name them: NAME=...")
    for _, _, folder in parsed:
        if folder and out.resolve().is_relative_to(Path(folder).resolve()):
            raise ValueError(f"Got --out {out} inside the checkpoint {folder}; results belong elsewhere.")


def load(text: str, device: torch.device, dtype: str = "auto") -> Any:
    """A system from its words on the command line. Raises ValueError as `parse`."""
    name, kind, folder = parse(text)
    if folder is None:
        return Reference(name) if kind == "original" else Constant(name, silent=kind == "broken:silence")
    if kind == "codec":
        return Reference(name, folder, device)
    if kind == "broken:shuffled":
        return Shuffled(name, folder, device, dtype)
    return Model(name, folder, device, dtype, candidates=1 if kind == "first" else None)


def shuffle(codes: list[np.ndarray], size: int, seed: int) -> list[np.ndarray]:
    """Codes `[K, T]` of codebooks of `size` entries, renamed at random and in random order, each codebook its own way.

    The order alone is not enough: a bag of the right codes tells anygpt-tiny two words in three, because there are so
    few sentences in its world.
    """
    rng = np.random.default_rng(seed)
    return [np.stack([rng.permutation(size)[rng.permutation(book)] for book in item]) for item in codes]
