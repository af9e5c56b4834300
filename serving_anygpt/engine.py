"""A loaded model with its processor, and one question answered by it. The commands share this and nothing else."""

import dataclasses
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from modeling_anygpt.configuration_anygpt import find_modality
from processing_anygpt import generate_best  # registers the classes with transformers, too
from processing_anygpt.codec_shelf import refuse_missing
from processing_anygpt.instructions import openings
from processing_anygpt.read_back import settings_of

from .progress import TokenProgress, only_ours, step
from .requests import instructions_of

TEXT_TOKENS = 128  # of a reply, around its items
DEFAULT_SECONDS = 30.0  # longest sound of a modality whose row of the table sets no limit


# What transformers raises at files of a checkpoint that are cut short, or hold something else.
DAMAGED = (SafetensorError, RuntimeError, LookupError, TypeError, AttributeError, StrictDataclassError)


@contextmanager
def whole(folder: str | os.PathLike):
    """What transformers raises at a damaged checkpoint, as a ValueError that names the folder."""
    try:
        yield
    except DAMAGED as error:
        raise ValueError(f"{folder} is not a complete checkpoint: {error}") from error


def load_processor(folder: str):
    """The processor of a checkpoint folder; its codecs load when first needed."""
    only_ours()
    with whole(folder):
        return transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)


@dataclass
class Answer:
    """`parts`: typed parts of the reply in order. `seconds`: wall clock from inputs to media. Token counts: what the
    language model read and wrote."""

    parts: list
    seconds: float
    tokens_in: int
    tokens_out: int


class Engine:
    """Model and processor of one checkpoint folder.

    Raises:
        ValueError: the folder's weights or tokenizer are missing or broken.
    """

    def __init__(self, folder: str, quiet: bool = False):
        self.quiet = quiet
        self.instructions = instructions_of(folder)
        with step("loading the model", quiet), whole(folder):
            self.processor = load_processor(folder)
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, output_loading_info=True
            )
        refuse_missing(report, f"{folder} is not complete: it")
        self.model = model.eval()

    def sampling_rate(self, modality: str) -> int:
        return find_modality(self.model.config.modalities, modality).sampling_rate

    def encoded(self, block: dict) -> dict:
        """A media block as codes, so that a conversation does not encode it again at every turn."""
        (codes,) = self.processor.encode_media(block["type"], [block])
        return {"type": block["type"], "codes": codes}

    def limit_seconds(self, modality: str, seconds: float) -> None:
        """No item of `modality` gets longer than `seconds` from now on."""
        specs = self.model.config.modalities
        rate = find_modality(specs, modality).frame_rate
        if seconds * rate < 1:
            raise ValueError(f"--max-seconds {seconds:g} is less than a frame of {modality}: {1 / rate:g} s.")
        self.model.config.modalities = [
            dataclasses.replace(spec, max_seconds=seconds) if spec.name == modality else spec for spec in specs
        ]

    def questions(self, required: tuple[str, ...]) -> dict:
        """How an item is shown back to the model: the checkpoint's choice, else its words for telling and making."""
        if len(required) != 1 or settings_of(self.model.generation_config, required):
            return {}
        name = required[0]
        return {
            "instruction": self.instructions.get((name, "text"), [None])[0],
            "openings": openings(self.instructions.get(("text", name), ())),
        }

    def budget(self, modalities: tuple[str, ...]) -> int:
        """New tokens that hold a reply with one item of each modality in `modalities`, at its longest."""
        tokens = TEXT_TOKENS
        for spec in self.model.config.modalities:
            if spec.name in modalities:
                tokens += 2 + spec.num_codebooks * (spec.max_frames or round(DEFAULT_SECONDS * spec.frame_rate))
        return tokens

    def answer(
        self,
        messages: list[dict],
        modalities: tuple[str, ...],
        required: tuple[str, ...] = (),
        voice: str | None = None,
        candidates: int | None = None,
    ) -> Answer:
        """The reply to a conversation.

        Args:
            messages: as `apply_chat_template` takes them.
            modalities: what the reply may hold; `required`: what it must hold.
            voice: recording whose voice spoken answers continue (the first seconds of it).
            candidates: replies to choose the best from; None: what the checkpoint says (`generate_best`).
        """
        start = time.perf_counter()
        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        prompt_length = inputs["input_ids"].shape[1]
        context = self.model.config.text_config.max_position_embeddings
        specs = [self.model.config.modality(name) for name in required]
        shortest = 1 + sum(2 + spec.num_codebooks * spec.min_frames for spec in specs)
        if prompt_length + shortest > context:
            raise ValueError(
                f"The request takes {prompt_length} tokens and its answer {shortest} or more, the model has room for "
                f"{context}. Give less at a time."
            )
        progress = TokenProgress("thinking", prompt_length, self.quiet)
        with torch.inference_mode(), progress:
            output = generate_best(
                self.model,
                self.processor,
                **inputs,
                candidates=candidates,
                **self.questions(required),
                output_modalities=modalities,
                required_modalities=required,
                max_new_tokens=min(self.budget(modalities), context - prompt_length),
                stopping_criteria=[progress],
            )
        reply = output[0, prompt_length:]
        with step("decoding", self.quiet or modalities == ("text",)):
            spoken = [name for name in required if find_modality(self.processor.specs, name).has_voice]
            parts = self.processor.parse_output(reply, voice=voice, joined=spoken)
        return Answer(parts, time.perf_counter() - start, prompt_length, len(reply))
