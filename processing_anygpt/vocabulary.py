"""Codes <-> token ids: which vocabulary rows belong to which modality.

"Codes" are integers of a codec, `[K, T]` (K codebooks, T frames); "ids" are rows of the language model's vocabulary.
Code `c` of codebook `k` is the token `code_token.format(c + codebook_size * k)` with the id
`first_code_id + c + codebook_size * k`; ids run frame by frame (frame 0: k = 0, 1, ...; frame 1: ...).

Token strings and their order are those of the released AnyGPT (OpenMOSS/AnyGPT 282b58f, `anygpt/src/m_utils`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

HUMAN, ASSISTANT, END_OF_HUMAN, END_OF_REPLY = "[Human]", "[MMGPT]", "<eoh>", "<eos>"
RESPONSE, INSTRUCTION = "<-Res->", "<-Ins->"


@dataclass
class Modality:
    """One row of the modality table, as the model's config stores it (`ModalitySpec` there has the same fields).

    The processor keeps its own class because a processor and a model exported as remote code can't share a module.
    """

    name: str
    code_token: str  # "<👀{}>"
    start_token: str
    end_token: str
    codebook_size: int
    num_codebooks: int = 1  # what the language model sees; the codec may have more
    frame_rate: float | None = None  # Hz
    codes_per_item: int | None = None  # images: every item has exactly this many codes
    sampling_rate: int | None = None  # Hz
    image_size: int | None = None  # px
    codec: str = ""  # subfolder of the checkpoint, or a hub id
    decoder: str | None = None  # the same of a model that adds unseen codebooks or paints pictures
    max_seconds: float | None = None  # s
    start_token_id: int | None = None
    end_token_id: int | None = None
    first_code_id: int | None = None

    @property
    def has_voice(self) -> bool:
        """Whether it is sound whose decoder adds codes, in a voice."""
        return self.decoder is not None and self.sampling_rate is not None

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Modality:
        unknown = set(row) - {field.name for field in fields(cls)}
        missing = {field.name for field in fields(cls) if field.default is MISSING} - set(row)
        if unknown or missing:
            raise ValueError(
                f"Unknown fields {sorted(unknown)}, missing fields {sorted(missing)} in a row of the modality table. "
                f"Known: {[f.name for f in fields(cls)]}."
            )
        return cls(**row)


def find_modality(modalities: Sequence[Any], name: str) -> Any:
    """The row called `name`; ValueError naming the known ones if there is none."""
    for modality in modalities:
        if modality.name == name:
            return modality
    known = ", ".join(modality.name for modality in modalities)
    raise ValueError(f"Unknown modality {name!r}. Known: {known}. Add one to the modality table of the config.")


def num_code_tokens(modality: Any) -> int:
    return modality.codebook_size * modality.num_codebooks


def code_ids(modality: Any) -> range:
    """The ids of all codes of a modality, a row of the table with its ids."""
    return range(modality.first_code_id, modality.first_code_id + num_code_tokens(modality))


def code_tokens(modality: Any) -> list[str]:
    """The token string of every code, in the order of their ids."""
    return [modality.code_token.format(i) for i in range(num_code_tokens(modality))]


def add_modality_tokens(tokenizer: Any, modalities: Sequence[Any]) -> list[Any]:
    """Grow `tokenizer` by the role markers and every modality's tokens; returns the modalities with their ids.

    The order is the released one: roles and ends, then per modality its codes, start, end, then the two markers of
    spoken instructions. Tokens that the tokenizer already has keep their ids.
    """
    tokens = [HUMAN, ASSISTANT, END_OF_HUMAN, END_OF_REPLY]
    for modality in modalities:
        tokens += [*code_tokens(modality), modality.start_token, modality.end_token]
    tokens += [RESPONSE, INSTRUCTION]
    tokenizer.add_tokens([ordinary_token(token, tokenizer.backend_tokenizer) for token in tokens])
    return modalities_from_tokenizer(tokenizer, modalities)


def ordinary_token(token: str, backend: Tokenizer) -> AddedToken:
    """An added token that is not "special", and one piece wherever it stands.

    It skips normalisation, unless the normaliser puts a prefix before text and leaves the token as it is: that prefix
    is for the text as a whole, which a token that skips would cut in two.
    """
    normalize = backend.normalizer.normalize_str if backend.normalizer else str
    return AddedToken(token, normalized=normalize("x") != "x" and normalize(token) == token, special=False)


def modalities_from_tokenizer(tokenizer: Any, modalities: Sequence[Any]) -> list[Any]:
    """Copies of `modalities` with the ids that the tokenizer gives their tokens.

    Raises:
        ValueError: a token is missing, the codes of a modality are not contiguous, or a row already holds ids that
            disagree with the tokenizer's.
    """
    vocabulary = tokenizer.get_vocab()
    found = []
    for modality in modalities:
        strings = [modality.start_token, modality.end_token, *code_tokens(modality)]
        missing = [token for token in strings if token not in vocabulary]
        if missing:
            raise ValueError(
                f"The tokenizer has no token {missing[0]!r} ({len(missing)} of {len(strings)} of {modality.name} are "
                "missing). Grow it with add_modality_tokens, or load the tokenizer that belongs to this checkpoint."
            )
        start, end, *codes = (vocabulary[token] for token in strings)
        if codes != list(range(codes[0], codes[0] + len(codes))):
            raise ValueError(
                f"The {modality.name} codes need contiguous ids in the tokenizer, but {modality.code_token.format(0)} "
                f"has {codes[0]} and {modality.code_token.format(len(codes) - 1)} has {codes[-1]}. Add them in order."
            )
        ids = {"start_token_id": start, "end_token_id": end, "first_code_id": codes[0]}
        for name, value in ids.items():
            told = getattr(modality, name)
            if told is not None and told != value:
                raise ValueError(
                    f"{modality.name}.{name} is {told} in the modality table but {value} in the tokenizer. Tokenizer "
                    "and table come from different checkpoints: load both from the same folder."
                )
        found.append(replace(modality, **ids))
    return found


def codes_to_ids(modality: Any, codes: Any) -> list[int]:
    """Codes `[K, T]`, or `[T]` where K is 1, to ids, frame-major, without start and end tokens.

    Raises:
        ValueError: wrong number of codebooks or codes, codes that are not integers or out of range.
    """
    array = np.asarray(codes)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or array.shape[0] != modality.num_codebooks:
        raise ValueError(
            f"Got {modality.name} codes of shape {tuple(np.shape(codes))}, need [{modality.num_codebooks}, frames]."
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"Got {modality.name} codes of type {array.dtype}, need integers.")
    if modality.codes_per_item is not None and array.size != modality.codes_per_item:
        raise ValueError(f"Got {array.size} {modality.name} codes, need exactly {modality.codes_per_item}.")
    if array.size and (array.min() < 0 or array.max() >= modality.codebook_size):
        raise ValueError(
            f"Got {modality.name} codes in {array.min()}..{array.max()}, allowed are 0..{modality.codebook_size - 1}."
        )
    offsets = np.arange(modality.num_codebooks, dtype=np.int64)[:, None] * modality.codebook_size
    return (array.astype(np.int64) + offsets + modality.first_code_id).T.ravel().tolist()


def item_to_ids(modality: Any, codes: Any) -> list[int]:
    """`codes_to_ids` of an item that somebody gives: a ValueError for one without a frame, too."""
    ids = codes_to_ids(modality, codes)
    if not ids:
        raise ValueError(f"Got {modality.name} codes of no frames, need one or more.")
    return ids


def ids_to_codes(modality: Any, ids: Sequence[int]) -> np.ndarray:
    """Ids of code tokens to codes `[K, T]` int64. An incomplete last frame is dropped, as in the released code.

    Ids are read by position: a code that stands in another codebook's place keeps its value modulo the codebook size.
    """
    frames = len(ids) // modality.num_codebooks
    array = np.asarray(ids[: frames * modality.num_codebooks], dtype=np.int64) - modality.first_code_id
    return (array % modality.codebook_size).reshape(frames, modality.num_codebooks).T


def text_ids(ids: Sequence[int], tokenizer: Any, modalities: Sequence[Any]) -> list[int]:
    """`ids` without transcripts and what belongs to media or to the structure of a conversation."""
    markers = tokenizer.convert_tokens_to_ids([HUMAN, ASSISTANT, END_OF_HUMAN, END_OF_REPLY, RESPONSE, INSTRUCTION])
    media: set[int] = set()
    for modality in modalities:
        media.update([modality.start_token_id, modality.end_token_id, *code_ids(modality)])
    kept, heard = [], False
    for index in ids:
        if index in markers:
            heard = index == markers[-1]
        elif not heard and index not in media:
            kept.append(index)
    return kept
