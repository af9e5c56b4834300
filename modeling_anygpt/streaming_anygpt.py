"""Streaming: typed pieces of a reply while it is being generated."""

import queue
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from transformers.generation.streamers import BaseStreamer

from .configuration_anygpt import AnyGPTConfig


@dataclass
class TextPiece:
    """New text, cut where no later token can change it."""

    text: str


@dataclass
class CodesPiece:
    """New whole frames of an item: codes [K, T] int64. `last` closes the item (then T may be 0)."""

    modality: str
    codes: np.ndarray
    last: bool = False


class PieceStreamer(BaseStreamer):
    """Give it to `generate(streamer=...)` in one thread, iterate over it in another.

    Args:
        config: the model's config (modality table and ids).
        tokenizer: decodes the text.
        frames: frames of a piece, at least; the last piece of an item may have fewer.
        timeout: seconds to wait for the next piece before `queue.Empty` is raised; None waits for ever.

    Raises:
        ValueError: `generate` runs on a batch of more than one.
    """

    def __init__(self, config: AnyGPTConfig, tokenizer, frames: int = 1, timeout: float | None = None):
        if frames < 1:
            raise ValueError(f"frames must be at least 1, got {frames}.")
        self.config, self.tokenizer, self.frames, self.timeout = config, tokenizer, frames, timeout
        self.starts = {spec.start_token_id: spec for spec in config.modalities}
        self.silent = {config.eos_token_id, config.pad_token_id}
        self.pieces: queue.Queue = queue.Queue()
        self.prompt = True  # what comes first
        self.spec = None  # of the open item
        self.ids: list[int] = []  # not sent yet: codes of the open item, or text
        self.sent = ""  # text of `ids` that went out

    def put(self, value) -> None:
        """Called by `generate`: first with the prompt [1, L], then with each token [1]."""
        if value.ndim > 1 and value.shape[0] > 1:
            raise ValueError(f"PieceStreamer takes one reply at a time, got a batch of {value.shape[0]}.")
        for token in value.reshape(-1).tolist():
            self._read(token)
        if self.prompt:
            # Of the prompt only an open item matters: its incomplete frame belongs to the first frame that we send.
            if self.spec is None:
                self.ids = []
            else:
                self.ids = self.ids[len(self.ids) - len(self.ids) % self.spec.num_codebooks :]
            self.sent, self.prompt = "", False

    def end(self) -> None:
        """Called by `generate` at the end: sends what is left."""
        if self.spec is None:
            self._send_text(final=True)
        self.pieces.put(None)
        self.prompt, self.spec, self.ids, self.sent = True, None, [], ""

    def __iter__(self) -> Iterator[TextPiece | CodesPiece]:
        while (piece := self.pieces.get(timeout=self.timeout)) is not None:
            yield piece

    def _read(self, token: int) -> None:
        if self.spec is not None:
            spec = self.spec
            if spec.first_code_id <= token < spec.first_code_id + spec.num_codes:
                self.ids.append(token)
                self._send_codes(self.frames * spec.num_codebooks, last=False)
            else:  # the end token; in a prompt anything else ends an item too
                self._send_codes(0, last=True)
                self.spec, self.ids = None, []
        elif token in self.starts:
            self._send_text(final=True)
            self.spec, self.ids = self.starts[token], []
        elif token not in self.silent:
            self.ids.append(token)
            self._send_text(final=False)

    def _send_codes(self, least: int, last: bool) -> None:
        if self.prompt or len(self.ids) < least:
            return
        whole = len(self.ids) - len(self.ids) % self.spec.num_codebooks
        self.pieces.put(CodesPiece(self.spec.name, self.spec.ids_to_codes(self.ids[:whole]), last))
        self.ids = self.ids[whole:]

    def _send_text(self, final: bool) -> None:
        if self.prompt:
            return
        # Special tokens are no text: a backbone's own ends of a reply.
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        # Half a character of a byte-level tokenizer decodes to U+FFFD until its last byte is here.
        if (final or not text.endswith("\ufffd")) and len(text) > len(self.sent):
            self.pieces.put(TextPiece(text[len(self.sent) :]))
            self.sent = text
        if final:
            self.ids, self.sent = [], ""


__all__ = ["CodesPiece", "PieceStreamer", "TextPiece"]
