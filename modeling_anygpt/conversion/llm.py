"""The released language models (AnyGPT-base, AnyGPT-chat): LLaMA-2 with its vocabulary grown by codes.

A folder as transformers 4 wrote it: `config.json`, `tokenizer.model`, `added_tokens.json`, and shards of weights,
pickles or safetensors. Tensor names stay as they are; a shard becomes a shard. Only one of them is open at a time, and
that as a memory map.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import AddedToken, normalizers
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
CHAT_MARKERS = (CONTROL_TOKENS["response"], CONTROL_TOKENS["instruction"])
EMBEDDING = "model.embed_tokens.weight"
DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}  # as safetensors spells them


@dataclass
class OfficialLLM:
    """A released folder that has been checked: what its files say, all of it consistent."""

    config: AnyGPTConfig
    chat: bool  # the vocabulary holds the markers of spoken instructions
    tokenizer_model: Path
    tokenizer_settings: dict  # tokenizer_config.json, {} if there is none
    added_tokens: dict[str, int]  # those beyond tokenizer.model
    shards: dict[str, Path]  # our name -> official file
    weight_map: dict[str, str]  # tensor -> our name of its shard
    total_bytes: int


def read_official(folder: str | Path, table: Sequence[ModalitySpec] = RELEASED_TABLE) -> OfficialLLM:
    """Checks a released folder whole, without reading the weights themselves.

    Args:
        folder: `config.json`, `tokenizer.model`, `added_tokens.json` and the weights, in one file or shards.
        table: the modalities whose tokens the vocabulary must hold; their ids are taken from `added_tokens.json`.

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
    tensors, shards = {}, {}
    files = _weight_files(folder)
    for number, path in enumerate(files, 1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        for key, tensor in _read_shard(path).items():
            if key in tensors:
                raise ValueError(f"{path} and {shards[tensors[key][1]]} both hold {key}. Remove the surplus files.")
            tensors[key] = (tensor, name)
        shards[name] = path
    rows = tensors[EMBEDDING][0].shape[0] if EMBEDDING in tensors else 0
    if not pieces + len(added) == text_config.vocab_size == rows:
        raise ValueError(
            f"{folder}: the tokenizer has {pieces + len(added)} tokens ({pieces} of tokenizer.model and {len(added)} "
            f"of added_tokens.json), config.json says vocab_size {text_config.vocab_size}, the embedding has {rows} "
            "rows. They must be equal: take all files from one release."
        )
    dtype = tensors[EMBEDDING][0].dtype
    text_config.dtype = dtype
    config = AnyGPTConfig(text_config=text_config, modalities=table, dtype=dtype)
    expected = meta_shapes(AnyGPTForCausalLM, config)
    if config.tie_word_embeddings:  # the head is the embedding, whether a file repeats it or not
        expected.pop("lm_head.weight")
        tensors.pop("lm_head.weight", None)
    check_tensors(
        {key: tensor for key, (tensor, _) in tensors.items()},
        expected,
        f"The weights in {folder} are not those of its config.json",
    )
    settings = folder / "tokenizer_config.json"
    return OfficialLLM(
        config=config,
        chat=_is_chat(added, folder),
        tokenizer_model=folder / "tokenizer.model",
        tokenizer_settings=read_json(settings) if settings.exists() else {},
        added_tokens=added,
        shards=shards,
        weight_map={key: name for key, (_, name) in tensors.items()},
        total_bytes=sum(tensor.nbytes for tensor, _ in tensors.values()),
    )


def write_shard(llm: OfficialLLM, name: str, path: str | Path) -> None:
    """Writes our shard `name` to `path` (safetensors), tensor by tensor out of the mapped official file."""
    tensors = _read_shard(llm.shards[name])
    write_safetensors(path, {key: tensor for key, tensor in tensors.items() if llm.weight_map.get(key) == name})


def write_index(llm: OfficialLLM, folder: str | Path) -> None:
    """The index that tells which shard holds which tensor; a single file needs none."""
    if len(llm.shards) > 1:
        index = {"metadata": {"total_size": llm.total_bytes}, "weight_map": llm.weight_map}
        (Path(folder) / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_safetensors(path: str | Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes a safetensors file tensor by tensor. `safetensors.torch.save_file` first copies all of them to memory.

    The format: the length of the header in 8 bytes (little endian), the header in JSON, the data.
    """
    header, position = {"__metadata__": {"format": "pt"}}, 0
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # keeps every tensor aligned
    for name in names:
        tensor, end = tensors[name], position + tensors[name].nbytes
        if tensor.dtype not in DTYPE_NAMES:
            raise ValueError(f"{name} is {tensor.dtype}, weights are float32, float16 or bfloat16.")
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(tensors[name].contiguous().flatten().view(torch.uint8).numpy())
        file.flush()
        os.fsync(file.fileno())  # a rename must not overtake the data, should the power fail


def build_tokenizer(llm: OfficialLLM) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a checked folder, every token with the id that the folder gives it."""
    legacy = llm.tokenizer_settings.get("legacy", True)  # transformers 4 took True where a file was silent
    tokenizer = llama_tokenizer(llm.tokenizer_model, legacy, llm.tokenizer_settings.get("add_bos_token", True))
    tokenizer.model_max_length = llm.config.text_config.max_position_embeddings
    in_order = sorted(llm.added_tokens, key=llm.added_tokens.get)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in in_order])
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
        legacy: put a space before every stretch of text between added tokens, not only the first, as transformers did
            before 4.31, and since then unless told otherwise.
    """
    with tempfile.TemporaryDirectory() as folder:  # alone, lest other files of a release have a say
        shutil.copyfile(model, Path(folder) / "tokenizer.model")
        backend = LlamaTokenizer.from_pretrained(folder, add_bos_token=add_bos_token).backend_tokenizer
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
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
    except (ArithmeticError, AttributeError, KeyError, OSError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} does not describe a {kind!r} model: {error}.") from error


def _read_vocabulary(folder: Path) -> tuple[int, dict[str, int]]:
    """-> pieces of tokenizer.model, and the tokens added to them by their ids, which follow without a gap."""
    try:
        import sentencepiece
    except ImportError:
        raise ImportError("Converting needs sentencepiece: pip install 'anygpt-hf[convert]'.") from None
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
