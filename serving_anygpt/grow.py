"""`anygpt init`: any causal language model on disk (or on the hub) becomes an AnyGPT model, ready to be trained.

The tokenizer gets the tokens of the modality table, embedding and head get their rows, and config, processor, codecs
and code are written beside them. What the backbone computes stays bit for bit: its own logits do not change, only new
ones come in. Its own chat template is not kept (the chat format is AnyGPT's); its ends of a reply still end one.

New rows are the mean of the old ones plus noise of a tenth of their spread. At the mean, the new tokens together take
at most their share of the vocabulary from the probability of text (J. Hewitt 2021, "Initializing New Word Embeddings
for Pretrained Language Models"). The noise tells codes apart from the first training step on; at a tenth of the spread
it moves a new logit by a tenth of what old logits differ by, so new tokens stay about as unlikely as the mean makes
them. Embedding and head have each their own mean and spread; tied, they are one matrix with one set of new rows.
"""

import copy
import dataclasses
import json
import re
import struct
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from modeling_anygpt import AnyGPTConfig, AnyGPTForCausalLM, ModalitySpec, find_modality
from processing_anygpt import AnyGPTProcessor, add_modality_tokens
from processing_anygpt.codec_shelf import CodecShelf, refuse_missing
from processing_anygpt.conversation import chat_template_for
from processing_anygpt.instructions import load_instructions

from . import media
from .engine import DAMAGED, whole
from .export import has_tokenizer
from .progress import step
from .requests import PROMPTS_FILE, write_prompts

MULTIPLE = 64  # of rows: with an odd number GPUs fall back to slow kernels in the head
NOISE = 0.1  # standard deviation of a new row around the mean, in those of the old rows


def init(
    backbone: str,
    out: str,
    modalities: list[str] | None = None,
    like: str = str(media.DEFAULT_MODEL),
    seed: int = 0,
    instructions: str | None = None,
    quiet: bool = False,
) -> str:
    """Writes the model folder `out`.

    Args:
        backbone: folder of a causal language model, a GGUF file (or a folder with just one), or a hub id, which is
            downloaded.
        modalities: names of rows of the modality table of `like`, in the order their tokens are added; None: all.
        like: AnyGPT folder that modality table, codecs, their sampling presets, chat template and system prompt are
            taken from.
        seed: of the noise in the new rows.
        instructions: YAML for `prepare_data.py --instructions`, if it is to be trained with such: what is typed or
            recorded without an instruction is then asked with the first of them. It comes along in training.
        quiet: no progress on standard error.

    Returns:
        What was written, in one line.

    Raises:
        ValueError: `out` exists, unknown modalities, instructions that are none of theirs, no such backbone, or
            one that AnyGPT can't be (it says why).
    """
    source = find_backbone(backbone)
    media.model_config(like)
    with whole(like):
        old_processor = AnyGPTProcessor.from_pretrained(like)
    specs = chosen_rows(old_processor, modalities, like)
    wording = load_instructions([spec.name for spec in specs], instructions) if instructions else {}
    with media.new_folder(out) as temporary:
        with step("loading the backbone", quiet):
            stock, tokenizer = load_backbone(source)
        old_ids = sorted(set(tokenizer.get_vocab().values()))
        add_modality_tokens(tokenizer, specs)
        model = adopt(stock, tokenizer, specs)
        ids = sorted(set(tokenizer.get_vocab().values()))
        rows = grow(model, old_ids, ids, seed)
        presets = json_file(Path(like) / "generation_config.json").get("modality_presets", {})
        model.generation_config = generation_config(stock.generation_config, model.config, presets, ids)
        with step("saving", quiet):
            model.save_pretrained(temporary)
            make_processor(old_processor, tokenizer, model.config.modalities).save_pretrained(temporary)
            if wording:
                sentences = {tuple(direction.split("->")): lines for direction, lines in wording.items()}
                write_prompts(sentences, temporary / PROMPTS_FILE)
    names = ", ".join(spec.name for spec in specs)
    return f"{out}: {type(stock).__name__} with {names}, {rows:,} new of {model.config.vocab_size:,} rows"


def json_file(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def chosen_rows(processor: AnyGPTProcessor, names: list[str] | None, like: str) -> list[ModalitySpec]:
    """The rows of the table called `names`, without ids.

    Raises:
        ValueError: an unknown name, a name twice, or a codec that the folder does not hold.
    """
    table = [ModalitySpec.from_dict(row) for row in processor.modalities]
    names = [spec.name for spec in table] if names is None else names
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"Got modalities {', '.join(names) or 'none'}. Give one or more, each once.")
    none = {"start_token_id": None, "end_token_id": None, "first_code_id": None}
    specs = [dataclasses.replace(find_modality(table, name), **none) for name in names]
    for spec in specs:
        for codec in filter(None, (spec.codec, spec.decoder)):
            if "/" not in codec and not processor.shelf.has(codec):
                raise ValueError(f"{like} has no codec folder {codec!r} for {spec.name!r}. Complete it first.")
    return specs


def find_backbone(backbone: str) -> dict:
    """How transformers' `from_pretrained` is told where the backbone is.

    Raises:
        ValueError: nothing of that name is here, and it is no hub id.
    """
    path = Path(backbone)
    if path.is_file() and path.suffix == ".gguf":
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.is_dir():
        if (path / "config.json").is_file():
            return {"pretrained_model_name_or_path": str(path)}
        files = [file.name for file in sorted(path.glob("*.gguf"))]
        if len(files) == 1:
            return {"pretrained_model_name_or_path": str(path), "gguf_file": files[0]}
        raise ValueError(f"{path} has no config.json and {len(files)} GGUF files. Give a model folder or one file.")
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", backbone):
        raise ValueError(f"No such backbone: {backbone}. Give a model folder, a .gguf file, or a hub id (ORG/NAME).")
    return {"pretrained_model_name_or_path": backbone}


def load_backbone(source: dict):
    """The backbone in its own precision (GGUF: float32), in eval mode, and its tokenizer.

    Raises:
        ValueError: nothing there, not a causal language model that transformers has code for, quantised or broken.
        ImportError: a GGUF file without the extra for it.
    """
    # trust_remote_code=False: without it transformers asks on the terminal.
    options = source | {"trust_remote_code": False}
    if "gguf_file" in source and find_spec("gguf") is None:
        raise ImportError("Reading a GGUF file needs: pip install gguf")
    try:
        config = AutoConfig.from_pretrained(**options)
        if config.model_type == AnyGPTConfig.model_type:
            raise ValueError("The backbone is an AnyGPT model already. `anygpt export --to plain` gives its backbone.")
        if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise ValueError(f"The backbone is of type {config.model_type!r}, not a causal language model.")
        if getattr(config, "quantization_config", None) is not None:
            raise ValueError("The backbone is quantised, and its rows can't be grown. Give the original weights.")
        folder = Path(source["pretrained_model_name_or_path"])
        if folder.is_dir() and "gguf_file" not in source and not has_tokenizer(folder):
            raise ValueError(f"{folder} has no tokenizer. Put its files there.")
        tokenizer = AutoTokenizer.from_pretrained(**options)
        if "gguf_file" in source:  # or it leaves them packed where it can, and calls the model quantised
            from transformers import GgufConfig  # newer than what the rest needs

            options["quantization_config"] = GgufConfig(dequantize=True)
        options |= {"dtype": "auto", "output_loading_info": True}
        model, report = AutoModelForCausalLM.from_pretrained(config=config, **options)
    except (OSError, struct.error, *DAMAGED) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"Cannot load {source['pretrained_model_name_or_path']}: {reason}") from error
    refuse_missing(report, "The backbone")
    if not tokenizer.is_fast:
        raise ValueError(f"The backbone's tokenizer ({type(tokenizer).__name__}) is not a fast one.")
    if tokenizer.pad_token is None:  # Llama has none; batches need one, and the mask hides it
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"  # what `generate` needs of a batch
    tokenizer.chat_template = None
    return model.eval(), tokenizer


def adopt(stock, tokenizer, specs: list[ModalitySpec]) -> AnyGPTForCausalLM:
    """An AnyGPT model made of the modules of `stock`, with its old vocabulary; `tokenizer` is the grown one.

    Of a model that also sees or hears by itself (`text_config` inside its config) the language model is taken.

    Raises:
        ValueError: the backbone is more than `model.embed_tokens`, layers and a linear head.
    """
    refusal = f"Backbone {stock.config.model_type!r} {{}}. Use a Llama, Qwen, Gemma, Mistral or similar one."
    decoder, head, embedding = stock.get_decoder(), stock.get_output_embeddings(), stock.get_input_embeddings()
    text_config = stock.config.get_text_config(decoder=True)
    with torch.device("meta"):
        expected = type(AutoModel.from_config(copy.deepcopy(text_config)))
    embeddings = [part for part in decoder.modules() if isinstance(part, nn.Embedding)]  # Gemma 3n has several
    linear = isinstance(head, nn.Linear) and head.bias is None
    if type(decoder) is not expected or getattr(decoder, "embed_tokens", None) is not embedding or not linear:
        raise ValueError(refusal.format("is not made of embed_tokens, layers and a linear head"))
    if embeddings != [embedding]:
        raise ValueError(refusal.format("has more embeddings than embed_tokens"))
    text_config.tie_word_embeddings = head.weight is embedding.weight
    config = AnyGPTConfig(text_config=text_config, modalities=specs)
    config.assign_token_ids(tokenizer)
    with torch.device("meta"):
        model = AnyGPTForCausalLM(config)
    model.model, model.lm_head = decoder, head
    model.eval()
    probe = torch.tensor([sorted(tokenizer.get_vocab().values())[:4]])
    with torch.inference_mode():
        if not torch.equal(model(input_ids=probe).logits, stock(input_ids=probe).logits):
            raise ValueError(refusal.format("changes its logits in a way that AnyGPT does not"))
    return model


def grow(model: AnyGPTForCausalLM, old_ids: list[int], ids: list[int], seed: int) -> int:
    """Gives embedding and head the rows of the grown vocabulary `ids`; returns how many are new.

    Some backbones have more rows than tokens (Qwen pads to a round number): new tokens take the free ones first. What
    is added is rounded up to a multiple of `MULTIPLE`. All new rows are filled alike, those without a token too; old
    rows that no token has stay as they are.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    before = embedding.weight.shape[0]
    rows = max(before, -(-(ids[-1] + 1) // MULTIPLE) * MULTIPLE)
    old = torch.tensor([i for i in old_ids if i < before])
    new = torch.tensor(sorted((set(ids) - set(old.tolist())) | set(range(before, rows))))
    generator = torch.Generator().manual_seed(seed)
    tied = head.weight is embedding.weight
    embedding.weight = nn.Parameter(grown(embedding.weight.detach(), rows, old, new, generator))
    head.weight = embedding.weight if tied else nn.Parameter(grown(head.weight.detach(), rows, old, new, generator))
    embedding.num_embeddings = head.out_features = rows
    model.config.text_config.vocab_size = rows
    return len(new)


def grown(weight: torch.Tensor, rows: int, old: torch.Tensor, new: torch.Tensor, generator) -> torch.Tensor:
    """weight [V, C] -> [rows, C] with the mean of rows `old` plus noise in rows `new`."""
    result = weight.new_zeros(rows, weight.shape[1])
    result[: len(weight)] = weight
    known = weight[old].float()
    noise = torch.randn(len(new), weight.shape[1], generator=generator)
    result[new] = (known.mean(0) + NOISE * known.std(0) * noise).to(weight.dtype)
    return result


def generation_config(old: GenerationConfig, config: AnyGPTConfig, presets: dict, ids: list[int]) -> GenerationConfig:
    """The backbone's settings for text, the presets of `like` for what its table has, every end of a reply, and no id
    but those of the vocabulary, `ids`: a row without a token says nothing."""
    new = GenerationConfig.from_dict(old.to_dict())
    # If the backbone had no such file, `save_pretrained` would make the settings again from the model's config,
    # and lose these, the next time that somebody trains and saves.
    new._from_model_config = False
    ends = old.eos_token_id if isinstance(old.eos_token_id, list) else [old.eos_token_id]
    new.eos_token_id = list(dict.fromkeys([config.eos_token_id, *(i for i in ends if i is not None)]))
    new.pad_token_id = config.pad_token_id
    unused = set(range(config.vocab_size)) - set(ids)
    new.suppress_tokens = sorted(unused | set(old.suppress_tokens or ())) or None
    new.modality_presets = {spec.name: presets[spec.name] for spec in config.modalities if spec.name in presets}
    if not old.do_sample:  # greedy text, as before; codes are sampled
        new.do_sample = True
        new.modality_presets["text"] = {"top_k": 1}
    return new


def make_processor(like: AnyGPTProcessor, tokenizer, specs: list[ModalitySpec]) -> AnyGPTProcessor:
    """A processor around the grown tokenizer, with the system prompt, turn separator and codecs of `like`."""
    separator = like.turn_separator
    usual = chat_template_for(like.tokenizer, separator)
    template = None if like.chat_template == usual else like.chat_template
    processor = AnyGPTProcessor(tokenizer, [spec.to_dict() for spec in specs], like.system_prompt, template, separator)
    processor.shelf = CodecShelf(like.shelf.source)
    return processor
