"""AnyGPT configuration: any causal language model (`text_config`) plus the modality table.

The table is the one source of truth for tokens, ids, grammar, templates and presets. A new modality is one row
(`ModalitySpec`) and one codec. Words used everywhere: a *code* is an integer a codec emits, a *token id* is a row of
the language model's vocabulary; K codebooks, T frames.
"""

import copy
import dataclasses
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from transformers import AutoConfig, PreTrainedConfig

# Structural tokens besides the codes, in the strings of the released AnyGPT tokenizer.
CONTROL_TOKENS = {
    "human": "[Human]",
    "assistant": "[MMGPT]",
    "eoh": "<eoh>",
    "eos": "<eos>",
    "response": "<-Res->",
    "instruction": "<-Ins->",
}


@dataclass(frozen=True)
class ModalitySpec:
    """One row of the modality table: how a medium looks to the language model and which codec makes it.

    Args:
        name: what users and messages call it, for example "speech". "text" is taken.
        code_token: pattern of the code tokens with one `{}`, for example "<👀{}>".
        start_token, end_token: the tokens around an item.
        codebook_size: codes per codebook.
        num_codebooks: codebooks the language model sees (K); frames are flattened frame by frame.
        frame_rate: frames per second (Hz) of a time-based modality, else None.
        codes_per_item: codes of an item of fixed length (images), else None.
        sampling_rate: Hz of the waveform; None for what is not audio.
        image_size: side in px of the square picture; None for what is not an image.
        codec: subfolder of the checkpoint, or hub id, of the model that encodes and decodes.
        decoder: same, for a model between the codes and the media, or None: it adds the codebooks the language model
            does not see (SoundStorm), or paints the picture (an unCLIP pipeline).
        max_seconds: longest item the model may write, in s; needs `frame_rate`. None: only the token budget limits it.
        start_token_id, end_token_id, first_code_id: vocabulary ids, None until a tokenizer is grown
            (`with_token_ids`). Codes take `first_code_id + code + codebook_size * codebook`.

    Raises:
        ValueError: when the fields contradict each other.
    """

    name: str
    code_token: str
    start_token: str
    end_token: str
    codebook_size: int
    num_codebooks: int = 1
    frame_rate: float | None = None
    codes_per_item: int | None = None
    sampling_rate: int | None = None
    image_size: int | None = None
    codec: str = ""
    decoder: str | None = None
    max_seconds: float | None = None
    start_token_id: int | None = None
    end_token_id: int | None = None
    first_code_id: int | None = None

    def __post_init__(self):
        where = f"Modality {self.name!r}"
        if not isinstance(self.name, str) or not self.name.isidentifier() or self.name in ("text", "transcript"):
            raise ValueError(f"A modality name is a word other than 'text' and 'transcript', got {self.name!r}.")
        for key in ("code_token", "start_token", "end_token"):
            if not isinstance(getattr(self, key), str):
                raise ValueError(f"{where}: {key} must be a string, got {getattr(self, key)!r}.")
        if self.code_token.count("{}") != 1:
            raise ValueError(f"{where}: code_token needs exactly one '{{}}', got {self.code_token!r}.")
        for key in ("codebook_size", "num_codebooks", "codes_per_item", "sampling_rate", "image_size"):
            value = getattr(self, key)
            if value is None and key not in ("codebook_size", "num_codebooks"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{where}: {key} must be a positive integer, got {value!r}.")
        for key in ("frame_rate", "max_seconds"):
            value = getattr(self, key)
            if value is not None and not (isinstance(value, (int, float)) and 0 < value < float("inf")):
                raise ValueError(f"{where}: {key} must be a positive number, got {value!r}.")
        if (self.codes_per_item is None) == (self.frame_rate is None):
            raise ValueError(
                f"{where}: give either codes_per_item (fixed length) or frame_rate (Hz), got "
                f"codes_per_item={self.codes_per_item} and frame_rate={self.frame_rate}."
            )
        if self.codes_per_item is not None and self.codes_per_item % self.num_codebooks:
            raise ValueError(
                f"{where}: codes_per_item must be a multiple of num_codebooks={self.num_codebooks}, got "
                f"{self.codes_per_item}."
            )
        if self.max_seconds is not None and (self.frame_rate is None or self.max_seconds * self.frame_rate < 1):
            raise ValueError(
                f"{where}: max_seconds={self.max_seconds} needs a frame_rate that makes at least one frame of it, got "
                f"frame_rate={self.frame_rate}."
            )
        ids = (self.start_token_id, self.end_token_id, self.first_code_id)
        if not all(isinstance(i, int) for i in ids) and ids != (None, None, None):
            raise ValueError(
                f"{where}: give all of start_token_id, end_token_id, first_code_id or none of them, got {ids}."
            )
        if ids[0] is not None:
            codes = range(self.first_code_id, self.first_code_id + self.num_codes)
            if min(ids) < 0 or ids[0] == ids[1] or ids[0] in codes or ids[1] in codes:
                raise ValueError(f"{where}: start, end and code ids must be different and not negative, got {ids}.")

    @property
    def num_codes(self) -> int:
        """Code tokens of all codebooks together."""
        return self.codebook_size * self.num_codebooks

    @property
    def is_audio(self) -> bool:
        return self.sampling_rate is not None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens the language model reads or writes per second of media; None for fixed-length items."""
        return None if self.frame_rate is None else self.frame_rate * self.num_codebooks

    @property
    def max_frames(self) -> int | None:
        """Most frames an item may have: the fixed length, or `max_seconds`; None without a limit."""
        if self.codes_per_item is not None:
            return self.codes_per_item // self.num_codebooks
        return None if self.max_seconds is None else round(self.max_seconds * self.frame_rate)

    @property
    def min_frames(self) -> int:
        """Fewest frames of a well-formed item: the fixed length, or one."""
        return 1 if self.codes_per_item is None else self.codes_per_item // self.num_codebooks

    def token(self, code: int, codebook: int = 0) -> str:
        """The token string of `code` (0..codebook_size-1) in `codebook` (0..num_codebooks-1)."""
        return self.code_token.format(self._index(code, codebook))

    def token_id(self, code: int, codebook: int = 0) -> int:
        """The vocabulary id of `code` in `codebook`."""
        self._need_ids()
        return self.first_code_id + self._index(code, codebook)

    def tokens(self) -> list[str]:
        """All code token strings in id order, without the start and end token."""
        return [self.code_token.format(i) for i in range(self.num_codes)]

    def ids_to_codes(self, ids) -> np.ndarray:
        """T*K token ids, frame by frame (frame 0: codebook 0, 1, ...) -> codes [K, T] int64."""
        self._need_ids()
        ids = np.asarray(ids, dtype=np.int64)
        if ids.ndim != 1 or len(ids) % self.num_codebooks:
            raise ValueError(
                f"Modality {self.name!r}: expected whole frames of {self.num_codebooks} codes, got ids of shape "
                f"{list(ids.shape)}."
            )
        codes = (ids - self.first_code_id).reshape(-1, self.num_codebooks).T
        codes = codes - self.codebook_size * np.arange(self.num_codebooks)[:, None]
        if codes.size and (codes.min() < 0 or codes.max() >= self.codebook_size):
            raise ValueError(f"Modality {self.name!r}: the ids hold a code of another codebook or another token.")
        return codes

    def with_token_ids(self, tokenizer) -> "ModalitySpec":
        """This row with the ids a grown tokenizer gives its tokens.

        Raises:
            ValueError: the tokenizer lacks a token, or its code ids are not consecutive.
        """
        names = [self.start_token, self.end_token, self.token(0), self.token(self.codebook_size - 1, -1)]
        ids = tokenizer.convert_tokens_to_ids(names)
        unknown = tokenizer.unk_token_id
        for name, token_id in zip(names, ids, strict=True):
            if token_id is None or (token_id == unknown and name != tokenizer.unk_token):
                raise ValueError(
                    f"Modality {self.name!r}: the tokenizer has no token {name!r}. Use the tokenizer saved with this "
                    "model, or grow it by the tokens of the modality table."
                )
        start, end, first, last = ids
        if last - first != self.num_codes - 1:
            raise ValueError(
                f"Modality {self.name!r}: ids of {names[2]!r}..{names[3]!r} must be {self.num_codes} in a row, "
                f"got {first}..{last}. Use the tokenizer saved with this model."
            )
        return dataclasses.replace(self, start_token_id=start, end_token_id=end, first_code_id=first)

    def to_dict(self) -> dict:
        """JSON-able fields; `ModalitySpec.from_dict` is the inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, row: dict) -> "ModalitySpec":
        """A row from its JSON form; unknown keys are an error, a row that is already one is returned as it is."""
        if isinstance(row, cls):
            return row
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(row) - set(known))
        missing = sorted({"name", "code_token", "start_token", "end_token", "codebook_size"} - set(row))
        if unknown or missing:
            raise ValueError(
                f"Modality row {row.get('name')!r}: unknown keys {unknown}, missing keys {missing}. Known: "
                f"{', '.join(known)}."
            )
        return cls(**row)

    def _index(self, code: int, codebook: int) -> int:
        if codebook < 0:  # -1 is the last codebook, as in a list
            codebook += self.num_codebooks
        if not 0 <= codebook < self.num_codebooks:
            raise ValueError(f"Modality {self.name!r} has codebooks 0..{self.num_codebooks - 1}, got {codebook}.")
        if not 0 <= code < self.codebook_size:
            raise ValueError(f"Modality {self.name!r} has codes 0..{self.codebook_size - 1}, got {code}.")
        return int(code) + self.codebook_size * codebook

    def _need_ids(self):
        if self.first_code_id is None:
            raise ValueError(
                f"Modality {self.name!r} has no token ids yet: use `spec.with_token_ids(tokenizer)` with a grown "
                "tokenizer."
            )


def find_modality(modalities: list[ModalitySpec], name: str) -> ModalitySpec:
    """The row called `name`; a ValueError names the known ones."""
    for spec in modalities:
        if spec.name == name:
            return spec
    known = ", ".join(spec.name for spec in modalities) or "none"
    raise ValueError(f"Unknown modality {name!r}. Known: {known}. Add one to the modality table of the config.")


class AnyGPTConfig(PreTrainedConfig):
    """Configuration of `AnyGPTForCausalLM`.

    Args:
        text_config: config (or its dict with "model_type") of any causal language model; copied, never shared.
        modalities: rows of the modality table, `ModalitySpec` or dict.
        human_token_id, assistant_token_id, eoh_token_id, response_token_id, instruction_token_id: ids of the control
            tokens; None where the checkpoint has none. `generate` never lets the model write the first three.
        space_token_ids: ids of the tokens that are one space. Replies begin with one, also those of codes alone.
        eos_token_id, pad_token_id: id that ends a reply, id that pads a batch; default to those of `text_config`.
        auto_map: written by `save_pretrained` for remote code; always present, because TRL reads it unasked.

    Raises:
        ValueError: two rows share a name, a token or an id.
    """

    model_type = "anygpt"
    sub_configs = {"text_config": AutoConfig}

    text_config: PreTrainedConfig | dict | None = None
    modalities: list | None = None
    human_token_id: int | None = None
    assistant_token_id: int | None = None
    eoh_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    response_token_id: int | None = None
    instruction_token_id: int | None = None
    space_token_ids: list = field(default_factory=list)
    auto_map: dict = field(default_factory=dict)

    def __post_init__(self, **kwargs):
        if self.text_config is None:
            self.text_config = AutoConfig.for_model("llama")
        elif isinstance(self.text_config, dict):
            if "model_type" not in self.text_config:
                raise ValueError("text_config needs a 'model_type', for example 'llama'.")
            self.text_config = AutoConfig.for_model(**self.text_config)
        else:
            # A config object shared by two models loses its attention implementation, and with it the causal mask,
            # when the second model is built.
            self.text_config = copy.deepcopy(self.text_config)
        self.modalities = [ModalitySpec.from_dict(row) for row in self.modalities or []]
        self.auto_map = dict(self.auto_map or {})
        for key in ("eos_token_id", "pad_token_id"):
            if getattr(self, key) is None:
                setattr(self, key, getattr(self.text_config, key, None))
        self.space_token_ids = list(self.space_token_ids or [])
        self._check_table()
        super().__post_init__(**kwargs)

    def modality(self, name: str) -> ModalitySpec:
        """The table row called `name`; a ValueError names the known ones."""
        return find_modality(self.modalities, name)

    def assign_token_ids(self, tokenizer) -> None:
        """Fill every id of the table and of the control tokens from a grown tokenizer (tokens it lacks raise)."""
        self.modalities = [spec.with_token_ids(tokenizer) for spec in self.modalities]
        vocabulary = tokenizer.get_vocab()
        for key, token in CONTROL_TOKENS.items():
            setattr(self, f"{key}_token_id", vocabulary.get(token))
        self.space_token_ids = [vocabulary[token] for token in ("\u2581", "\u0120", " ") if token in vocabulary]
        self.text_config.eos_token_id = self.eos_token_id
        # Not the default of the backbone's class, which is some other token where the tokenizer has none.
        self.text_config.bos_token_id = tokenizer.bos_token_id
        self.pad_token_id = self.text_config.pad_token_id = tokenizer.pad_token_id
        self._check_table()

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding, as `resize_token_embeddings` left them."""
        return self.text_config.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.text_config.hidden_size

    @property
    def tie_word_embeddings(self) -> bool:
        """Kept in `text_config` alone, so that the two cannot disagree."""
        return self.text_config.tie_word_embeddings

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, value: bool):
        self.text_config.tie_word_embeddings = value

    @property
    def use_cache(self) -> bool:
        """Kept in `text_config` alone: the backbone reads it there, and Trainer sets it here."""
        return getattr(self.text_config, "use_cache", True)

    @use_cache.setter
    def use_cache(self, value: bool):
        self.text_config.use_cache = value

    def to_dict(self) -> dict:
        """JSON-able form: as the base class, with table rows as dicts. PEFT looks for `tie_word_embeddings` there."""
        output = super().to_dict()
        output["modalities"] = [spec.to_dict() for spec in self.modalities]
        output["tie_word_embeddings"] = self.tie_word_embeddings
        return output

    def _check_table(self):
        owners = {}
        for spec in self.modalities:
            tokens = (spec.start_token, spec.end_token, spec.code_token)
            for key in [("name", spec.name), *(("token", token) for token in tokens)]:
                if key in owners:
                    raise ValueError(f"Modalities {owners[key]!r} and {spec.name!r} share the {key[0]} {key[1]!r}.")
                owners[key] = spec.name
        claimed = []
        for spec in self.modalities:
            if spec.first_code_id is None:
                continue
            claimed.append((spec.first_code_id, spec.first_code_id + spec.num_codes, f"the codes of {spec.name!r}"))
            claimed.append((spec.start_token_id, spec.start_token_id + 1, f"the start of {spec.name!r}"))
            claimed.append((spec.end_token_id, spec.end_token_id + 1, f"the end of {spec.name!r}"))
        for key in CONTROL_TOKENS:
            token_id = getattr(self, f"{key}_token_id")
            if isinstance(token_id, int):
                claimed.append((token_id, token_id + 1, f"{key}_token_id"))
        claimed.sort()
        for (_, end, left), (start, _, right) in pairwise(claimed):
            if start < end:
                raise ValueError(f"Token id {start} belongs to {left} and to {right}. Rebuild the modality table.")


def check_compatible(config: AnyGPTConfig, tokenizer) -> None:
    """Raise a one-line ValueError when a tokenizer and a model disagree on a token, an id or the vocabulary size."""
    for spec in config.modalities:
        found = spec.with_token_ids(tokenizer)
        for key in ("start_token_id", "end_token_id", "first_code_id"):
            if getattr(spec, key) != getattr(found, key):
                raise ValueError(
                    f"Modality {spec.name!r}: {key} is {getattr(spec, key)} in the model and {getattr(found, key)} in "
                    "the tokenizer. Load the processor and the model from the same checkpoint."
                )
    vocabulary = tokenizer.get_vocab()
    for key, token in CONTROL_TOKENS.items():
        wanted = getattr(config, f"{key}_token_id")
        if wanted is not None and vocabulary.get(token) != wanted:
            raise ValueError(
                f"Token {token!r} is {wanted} in the model and {vocabulary.get(token)} in the tokenizer. Load the "
                "processor and the model from the same checkpoint."
            )
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size} embedding rows. Call "
            "`model.resize_token_embeddings(len(tokenizer))`, or load both from the same checkpoint."
        )


__all__ = ["CONTROL_TOKENS", "AnyGPTConfig", "ModalitySpec", "check_compatible", "find_modality"]
