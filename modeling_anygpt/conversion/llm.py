"""The released language models (AnyGPT-base, AnyGPT-chat): LLaMA-2 with its vocabulary grown by codes.

A folder as transformers 4 wrote it: `config.json`, `tokenizer.model`, `added_tokens.json`, and the weights in one file
or in shards, pickles or safetensors (AnyGPT-base: one pickle of 27.7 GB, float32). Tensor names stay as they are. Only
one file is open at a time, and that as a memory map, which is read tensor by tensor.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoConfig, LlamaTokenizer, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..configuration_anygpt import CONTROL_TOKENS, AnyGPTConfig, ModalitySpec
from ..modeling_anygpt import AnyGPTForCausalLM
from .pickles import check_file, check_tensors, meta_shapes, read_pickle, read_safetensors, some

# The released modality table (OpenMOSS/AnyGPT 282b58f, anygpt/src/m_utils). Music: the clips of its training take 5 s.
RELEASED_TABLE = (
    ModalitySpec(
        *("image", "<👀{}>", "<soim>", "<eoim>", 8192),
        **dict(codes_per_item=32, image_size=224, codec="image_codec", decoder="unclip"),
    ),
    ModalitySpec(
        *("speech", "<🗣️{}>", "<sosp>", "<eosp>", 1024),
        **dict(frame_rate=50, sampling_rate=16000, codec="speech_codec", decoder="soundstorm"),
    ),
    ModalitySpec(
        *("music", "<🎶{}>", "<somu>", "<eomu>", 2048, 4),
        **dict(frame_rate=50, sampling_rate=32000, codec="music_codec", max_seconds=5),
    ),
)
# The files of the released base model have the sizes of a vocabulary with one more modality (Encodec at 24 kHz), which
# its code has commented out and its paper does not mention. Its tokens, where there are any, are never generated.
UNTRAINED = ModalitySpec("sound", "<👂{}>", "<soau>", "<eoau>", 1024, 4, frame_rate=75, sampling_rate=24000)
MAX_SHARD_BYTES = 5 * 10**9  # of our files, as transformers splits them
CHAT_MARKERS = (CONTROL_TOKENS["response"], CONTROL_TOKENS["instruction"])
EMBEDDING = "model.embed_tokens.weight"
# Where a tokenizer that is not `legacy` puts its one prefix space: at the start, unless the text is empty or begins
# with a token of LLaMA's own. Nor if the whole text has the form of an added token: the added tokens themselves pass
# through the normaliser too, and must stay as they are. Other texts of that form get their space from `Metaspace`.
NEEDS_PREFIX = Regex(r"\A(?!\z|<s>|</s>|<unk>|<[^<>]*>\z|\[[^\[\]]*\]\z)")
DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}  # as safetensors spells them


@dataclass
class Shard:
    """A file to be written: some tensors of an official one."""

    source: Path
    shapes: dict[str, torch.Size]

    def bytes(self, dtype: torch.dtype) -> int:
        return dtype.itemsize * sum(shape.numel() for shape in self.shapes.values())


@dataclass
class OfficialLLM:
    """A released folder that has been checked: what its files say, all of it consistent."""

    config: AnyGPTConfig
    chat: bool  # the vocabulary holds the markers of spoken instructions
    tokenizer_model: Path
    tokenizer_settings: dict  # tokenizer_config.json, {} if there is none
    added_tokens: dict[str, int]  # those beyond tokenizer.model
    shards: dict[str, Shard]  # by our name

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, once converted."""
        return self.config.dtype

    @property
    def untrained_ids(self) -> list[int]:
        """Ids of `UNTRAINED`, which no reply may hold."""
        tokens = [*UNTRAINED.tokens(), UNTRAINED.start_token, UNTRAINED.end_token]
        return sorted(self.added_tokens[token] for token in tokens if token in self.added_tokens)


def read_official(
    folder: str | Path,
    table: Sequence[ModalitySpec] = RELEASED_TABLE,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> OfficialLLM:
    """Checks a released folder whole, without reading the weights themselves.

    Args:
        folder: `config.json`, `tokenizer.model`, `added_tokens.json` and the weights, in one file or shards.
        table: the modalities whose tokens the vocabulary must hold; their ids are taken from `added_tokens.json`.
        dtype: to convert the weights to; None: as stored.
        max_shard_bytes: largest file to write, but for tensors that are larger.

    Raises:
        ValueError: a file is missing or broken; the weights are not those of config.json; tokenizer, config.json and
            embedding have different sizes; the added tokens are not those of AnyGPT.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"No such folder: {folder}. Give the one with config.json, tokenizer.model and the weights.")
    text_config = _read_config(folder)
    pieces, added = _read_vocabulary(folder)
    table = [_with_ids(spec, added, folder) for spec in table]
    tensors, sources = {}, {}
    for path in _weight_files(folder):
        for key, tensor in _read_shard(path).items():
            if key in tensors:
                raise ValueError(f"{path} and {sources[key]} both hold {key}. Remove the surplus files.")
            tensors[key], sources[key] = tensor, path
    rows = tensors[EMBEDDING].shape[0] if EMBEDDING in tensors else 0
    if not pieces + len(added) == text_config.vocab_size == rows:
        raise ValueError(
            f"{folder}: the tokenizer has {pieces + len(added)} tokens ({pieces} of tokenizer.model and {len(added)} "
            f"of added_tokens.json), config.json says vocab_size {text_config.vocab_size}, the embedding has {rows} "
            "rows. They must be equal: take all files from one release."
        )
    config = AnyGPTConfig(text_config=text_config, modalities=table)
    expected = meta_shapes(AnyGPTForCausalLM, config)
    if config.tie_word_embeddings:  # the head is the embedding, whether a file repeats it or not
        expected.pop("lm_head.weight")
        tensors.pop("lm_head.weight", None)
    check_tensors(tensors, expected, f"The weights in {folder} are not those of its config.json")
    stored = {tensor.dtype for tensor in tensors.values()}
    if not stored <= set(DTYPE_NAMES) or (dtype is None and len(stored) > 1):
        raise ValueError(
            f"The weights in {folder} are {', '.join(sorted(map(str, stored)))}. Allowed are float32, float16 and "
            "bfloat16; if mixed, say which one to convert them to (--dtype)."
        )
    config.dtype = config.text_config.dtype = dtype or stored.pop()
    settings = folder / "tokenizer_config.json"
    return OfficialLLM(
        config=config,
        chat=_is_chat(added, folder),
        tokenizer_model=folder / "tokenizer.model",
        tokenizer_settings=read_json(settings) if settings.exists() else {},
        added_tokens=added,
        shards=_plan_shards({key: (sources[key], expected[key]) for key in tensors}, config.dtype, max_shard_bytes),
    )


def _plan_shards(tensors: dict[str, tuple[Path, torch.Size]], dtype: torch.dtype, limit: int) -> dict[str, Shard]:
    """Our files: tensors in their order, a new file where the official one ends or `limit` bytes are full."""
    shards: list[Shard] = []
    for key, (source, shape) in tensors.items():
        new = Shard(source, {key: shape})
        if shards and shards[-1].source == source and shards[-1].bytes(dtype) + new.bytes(dtype) <= limit:
            shards[-1].shapes |= new.shapes
        else:
            shards.append(new)
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, 1)}


def write_shard(llm: OfficialLLM, name: str, path: str | Path) -> None:
    """Writes our shard `name` to `path` (safetensors), tensor by tensor out of the mapped official file.

    The format: the length of the header in 8 bytes (little endian), the header in JSON, the data. safetensors' own
    `save_file` would first copy all of the shard to memory.
    """
    shard, dtype = llm.shards[name], llm.dtype
    header, position = {"__metadata__": {"format": "pt"}}, 0
    for key, shape in shard.shapes.items():
        end = position + dtype.itemsize * shape.numel()
        header[key] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    tensors = _read_shard(shard.source)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in shard.shapes:
            file.write(tensors.pop(key).to(dtype).contiguous().flatten().view(torch.uint8).numpy())
        file.flush()
        os.fsync(file.fileno())  # a rename must not overtake the data, should the power fail


def write_index(llm: OfficialLLM, folder: str | Path) -> None:
    """The index that tells which shard holds which tensor; a single file needs none."""
    if len(llm.shards) > 1:
        total = sum(shard.bytes(llm.dtype) for shard in llm.shards.values())
        weight_map = {key: name for name, shard in llm.shards.items() for key in shard.shapes}
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True)
        (Path(folder) / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


def build_tokenizer(llm: OfficialLLM) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a checked folder, every token with the id that the folder gives it."""
    legacy = llm.tokenizer_settings.get("legacy") is not False  # transformers 4 took True for null or nothing
    tokenizer = llama_tokenizer(llm.tokenizer_model, legacy, llm.tokenizer_settings.get("add_bos_token", True))
    tokenizer.model_max_length = llm.config.text_config.max_position_embeddings
    in_order = sorted(llm.added_tokens, key=llm.added_tokens.get)
    normalize = tokenizer.backend_tokenizer.normalizer.normalize_str
    tokenizer.add_tokens([AddedToken(t, normalized=normalize(t) == t, special=False) for t in in_order])
    vocabulary = tokenizer.get_vocab()
    wrong = [token for token in in_order if vocabulary[token] != llm.added_tokens[token]]
    if wrong:
        raise ValueError(
            f"{wrong[0]!r} got id {vocabulary[wrong[0]]}, added_tokens.json says {llm.added_tokens[wrong[0]]}: "
            f"{llm.tokenizer_model} already knows it, or is not the tokenizer of this checkpoint."
        )
    return tokenizer


def llama_tokenizer(model: str | Path, legacy: bool, add_bos_token: bool = True) -> PreTrainedTokenizerFast:
    """A SentencePiece model of LLaMA's kind as a fast tokenizer; pads with `<unk>`, on the left, as AnyGPT does.

    Args:
        legacy: put a space before every stretch of text between added tokens, as transformers did before 4.31, and
            since then unless told otherwise. If not, one stands before the whole text, also where that begins with
            spaces or an added token, though not one of LLaMA's own. Then added tokens must be `normalized`, lest they
            cut the text before the normaliser sees it.

    Ids are those of transformers' slow `LlamaTokenizer`, but for one text: no fast tokenizer can make two tokens, a
    space and `<eoh>`, of a text that is `<eoh>` and nothing else.
    """
    with tempfile.TemporaryDirectory() as folder:  # alone, lest other files of a release have a say
        shutil.copyfile(model, Path(folder) / "tokenizer.model")
        backend = LlamaTokenizer.from_pretrained(folder, add_bos_token=add_bos_token).backend_tokenizer
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
    else:
        # Built anew, as LLaMA's own tokens have to be normalised too.
        old, backend = backend, Tokenizer(backend.model)
        backend.normalizer = normalizers.Sequence(
            [normalizers.Replace(NEEDS_PREFIX, "▁"), normalizers.Replace(" ", "▁")]
        )
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        backend.post_processor, backend.decoder = old.post_processor, old.decoder
        backend.add_special_tokens([AddedToken(token, normalized=True) for token in ("<unk>", "<s>", "</s>")])
    # Not a LlamaTokenizer: loaded again, that would make a backend of its own and forget `legacy`.
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def read_json(path: Path) -> dict:
    """A JSON object; ValueError if the file is missing or anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} has no {path.name}. Download all files of the release.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, expected an object.")
    return content


def _read_config(folder: Path) -> PreTrainedConfig:
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"{folder} holds a {kind!r} model, expected a language model such as 'llama'.")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ArithmeticError, AttributeError, KeyError, OSError, StrictDataclassError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} does not describe a {kind!r} model: {error}.") from error


def _read_vocabulary(folder: Path) -> tuple[int, dict[str, int]]:
    """-> pieces of tokenizer.model, and the tokens added to them by their ids, which follow without a gap."""
    try:
        import sentencepiece
    except ImportError:
        raise ImportError("Converting needs sentencepiece: pip install sentencepiece.") from None
    path = check_file(folder / "tokenizer.model")
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError):
        raise ValueError(f"{path} is not a SentencePiece model. Download it again.") from None
    pieces, path = model.get_piece_size(), folder / "added_tokens.json"
    tokens = read_json(path)
    if not all(isinstance(index, int) for index in tokens.values()):
        raise ValueError(f"{path} does not map tokens to integers.")
    # Some versions of transformers repeat <unk>, <s> and </s> here.
    added = {token: i for token, i in tokens.items() if not (0 <= i < pieces and model.id_to_piece(i) == token)}
    if sorted(added.values()) != list(range(pieces, pieces + len(added))):
        raise ValueError(
            f"{path} must give its {len(added)} tokens the ids {pieces} to {pieces + len(added) - 1}, once each, "
            f"after the {pieces} of tokenizer.model; it has {min(added.values(), default=None)} to "
            f"{max(added.values(), default=None)}."
        )
    return pieces, added


def _with_ids(spec: ModalitySpec, added: dict[str, int], folder: Path) -> ModalitySpec:
    """The row of the table with the ids that the checkpoint gives its tokens."""
    tokens = [spec.start_token, spec.end_token, *spec.tokens()]
    missing = [token for token in tokens if token not in added]
    if missing:
        raise ValueError(
            f"{folder / 'added_tokens.json'} lacks {len(missing)} of the {len(tokens)} tokens of {spec.name} "
            f"({some(missing)}): this is not an AnyGPT checkpoint."
        )
    start, end, *codes = (added[token] for token in tokens)
    if codes != list(range(codes[0], codes[0] + len(codes))):
        raise ValueError(f"{folder / 'added_tokens.json'}: the codes of {spec.name} have no consecutive ids.")
    return replace(spec, start_token_id=start, end_token_id=end, first_code_id=codes[0])


def _is_chat(added: dict[str, int], folder: Path) -> bool:
    needed = [token for name, token in CONTROL_TOKENS.items() if token not in CHAT_MARKERS]
    missing = [token for token in needed if token not in added]
    markers = [token for token in CHAT_MARKERS if token in added]
    if missing or len(markers) == 1:
        raise ValueError(
            f"{folder / 'added_tokens.json'} must hold {' '.join(needed)}, and both or none of "
            f"{' '.join(CHAT_MARKERS)}; it lacks {' '.join(missing or set(CHAT_MARKERS) - set(markers))}."
        )
    return bool(markers)


def _weight_files(folder: Path) -> list[Path]:
    """The files of weights in order; safetensors where there are both kinds."""
    for single, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if (folder / index).exists():
            weight_map = read_json(folder / index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
                raise ValueError(f"{folder / index} has no weight_map of tensors to files.")
            names = sorted(set(weight_map.values()))
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise ValueError(f"{folder} lacks {len(missing)} of {len(names)} shards: {some(missing)}.")
            return [folder / name for name in names]
        if (folder / single).exists():
            return [folder / single]
    raise ValueError(f"{folder} holds no weights: neither model.safetensors nor pytorch_model.bin nor shards of them.")


def _read_shard(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of an official shard, memory-mapped, without the rotary frequencies that old files repeat per layer."""
    tensors = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    return {key: tensor for key, tensor in tensors.items() if not key.endswith("rotary_emb.inv_freq")}
