"""`anygpt convert`: the files that AnyGPT's authors and others released become one folder of this package.

Everything is checked before anything is written: names and shapes of all tensors, token ids, sizes. Then the parts are
made one after the other in the folder `OUT.partial`, which is renamed at the end. A run that was interrupted is taken
up where it stopped: a part that is there, made of the same files, is not made again.
"""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from transformers import EncodecModel, GenerationConfig
from transformers.dynamic_module_utils import custom_object_save

from modeling_anygpt import AnyGPTForCausalLM, find_modality
from modeling_anygpt.codecs.unclip import check_folder
from modeling_anygpt.conversion import llm, pickles, seed2, soundstorm, speech_tokenizer
from modeling_anygpt.modeling_anygpt import PIPELINE_CLASSES
from processing_anygpt import AnyGPTProcessor
from processing_anygpt.codec_shelf import NOT_FETCHED, PIPELINE_INDEX, CodecShelf

from .progress import step
from .requests import BASE_INSTRUCTIONS, GENERAL_INSTRUCTIONS, PROMPTS_FILE, read_prompts, write_prompts
from .workshop import Part, Workshop

SYSTEM_PROMPT = "You are a helpful assistant that understands and makes text, speech, images and music."
# Sampling of the released code (OpenMOSS/AnyGPT 282b58f, config/*_generate_config.json); what is not named is neutral.
RELEASED_PRESETS = {
    "speech": {"repetition_penalty": 1.05},
    "music": {"top_k": 200, "repetition_penalty": 1.15},
}
RELEASED_MAX_NEW_TOKENS = 2000  # the largest of theirs, that of music
# Table 9 of the paper. Its beam search for text is a setting of the whole reply, hence a file of its own.
PAPER_PRESETS = {
    "image": {"top_p": 0.7},
    "speech": {"top_p": 0.7},
    "music": {"top_p": 1.0, "repetition_penalty": 1.15},
}
PAPER_BEAMS = 5


def convert(
    llm_folder: str,
    speech_folder: str,
    soundstorm_file: str,
    seed_file: str,
    eva_file: str,
    encodec: str,
    unclip: str,
    out: str,
    chat: bool = False,
    prompts: str | None = None,
    dtype: str | None = None,
    quiet: bool = False,
) -> str:
    """Writes the model folder `out`.

    Args:
        llm_folder: AnyGPT-base or AnyGPT-chat.
        speech_folder: SpeechTokenizer: config.json with ckpt.dev or SpeechTokenizer.pt.
        soundstorm_file, seed_file, eva_file: official state dicts.
        encodec, unclip: a folder, which is copied, or a hub id, which is written down and fetched when first used.
        chat: refuse a checkpoint without the markers of chat models. They tell the two kinds apart in any case.
        prompts: JSON file with the system prompt and instruction sentences to use in the place of this package's own.
        dtype: of the language model, "float32", "float16" or "bfloat16"; None: as stored.
        quiet: no progress on standard error.

    Returns:
        What was written, in one line.

    Raises:
        ValueError: an input is wrong; `out` exists, or `out`.partial and is not an unfinished conversion.
    """
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    workshop = Workshop(Path(out))
    with step("checking the files", quiet):
        wording = read_prompts(prompts) if prompts else {}
        parts = [] if is_hub_id(unclip) else [painter_part(unclip)]
        parts += [*speech_parts(speech_folder, soundstorm_file), image_part(seed_file, eva_file)]
        official = llm.read_official(llm_folder, dtype=dtype and getattr(torch, dtype))
        if chat and not official.chat:
            raise ValueError(
                f"{llm_folder} is a base model: its vocabulary lacks {' '.join(llm.CHAT_MARKERS)}. Drop --chat, or "
                "give the chat model."
            )
        parts += [] if is_hub_id(encodec) else [music_part(encodec)]
        parts += llm_parts(official)
        workshop.check_space(sum(part.size for part in parts))
    hub = {}
    if is_hub_id(encodec):
        hub["music"] = {"codec": encodec}
    if is_hub_id(unclip):
        hub["image"] = {"decoder": unclip}
    rows = [replace(spec, **hub.get(spec.name, {})) for spec in official.config.modalities]
    official.config.modalities = rows
    with workshop:
        for part in parts:
            workshop.make(part, quiet)
        with step("tokenizer and settings", quiet):
            write_settings(official, wording, workshop.folder)
        workshop.finish()
    kind = "chat" if official.chat else "base"
    later = "".join(f", {name} from the hub when first used" for rows in hub.values() for name in rows.values())
    never = f", {len(official.untrained_ids):,} of them never generated" if official.untrained_ids else ""
    return f"{out}: AnyGPT {kind} model, {official.config.vocab_size:,} rows{never}{later}"


def is_hub_id(value: str) -> bool:
    """Whether a codec is named by its hub id: ORG/NAME, and neither it nor its first half is here.

    Raises:
        ValueError: neither a hub id nor a folder.
    """
    if Path(value).is_dir():
        return False
    if re.fullmatch(r"[\w.-]+/[\w.-]+", value) and not value.startswith(".") and not Path(value).parent.exists():
        return True
    raise ValueError(f"No such folder: {value}. Give a folder, or a hub id (ORG/NAME).")


# ---------------------------------------------------------------- codecs


def check_codec(name: str, file: str, **found) -> None:
    """Raises a ValueError when a codec is not the one that modality `name` of the released model was trained with."""
    row = find_modality(list(llm.RELEASED_TABLE), name)
    for key, value in found.items():
        if value != getattr(row, key):
            raise ValueError(f"{file} has {key} {value}, the {name} codec of AnyGPT has {getattr(row, key)}.")


def save_codec(model, folder: Path) -> None:
    """Saves a codec with the code that loads it, so that it can be used without this package."""
    shelf = CodecShelf()
    shelf.put(folder.name, model)
    shelf.save(folder.name, folder)


def speech_parts(folder: str, soundstorm_file: str) -> list[Part]:
    files = speech_tokenizer.find_official(folder)
    config, tensors = speech_tokenizer.read_official(*files)
    found = {"sampling_rate": config.sampling_rate, "frame_rate": config.frame_rate}
    check_codec("speech", str(files[1]), codebook_size=config.codebook_size, **found)
    storm, storm_tensors = soundstorm.read_official(soundstorm_file)
    levels = [config.codebook_size, config.codebook_size, config.num_codebooks - 1]
    if [storm.num_semantic_codes, storm.codebook_size, storm.num_quantizers] != levels:
        raise ValueError(
            f"{soundstorm_file} turns {storm.num_semantic_codes} semantic codes into {storm.num_quantizers} levels of "
            f"{storm.codebook_size}, the SpeechTokenizer has {levels[0]} and {levels[2]} levels of {levels[1]}."
        )
    return [
        Part(
            "speech_codec",
            list(files),
            lambda path: save_codec(speech_tokenizer.load_official(*files), path),
            total_bytes(tensors),
        ),
        Part(
            "soundstorm",
            [Path(soundstorm_file)],
            lambda path: save_codec(soundstorm.load_official(soundstorm_file), path),
            total_bytes(storm_tensors),
        ),
    ]


def image_part(seed_file: str, eva_file: str) -> Part:
    config, tensors = seed2.read_official(seed_file, eva_file)
    check_codec("image", seed_file, codebook_size=config.codebook_size, codes_per_item=config.num_query_tokens)
    return Part(
        "image_codec",
        [Path(seed_file), Path(eva_file)],
        lambda path: save_codec(seed2.load_official(seed_file, eva_file), path),
        total_bytes(tensors),
    )


def music_part(folder: str) -> Part:
    """Encodec in transformers' own layout."""
    files = sorted(path for path in Path(folder).iterdir() if path.suffix in (".json", ".safetensors", ".bin"))
    kind = llm.read_json(Path(folder) / "config.json").get("model_type")
    if kind != EncodecModel.config_class.model_type:
        raise ValueError(f"{folder} holds a {kind!r} model, expected an 'encodec' one.")
    for path in files:
        if path.suffix != ".json":
            pickles.read_safetensors(path) if path.suffix == ".safetensors" else pickles.read_pickle(path)
    try:
        model, report = EncodecModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, RuntimeError, TypeError, KeyError) as error:
        raise ValueError(f"{folder} is not a whole Encodec model: {error}") from error
    wrong = {key: sorted(map(str, names)) for key, names in report.items() if names}
    if wrong:
        raise ValueError(f"{folder}: the weights are not those of its config.json: {wrong}.")
    config = model.config
    check_codec(
        "music",
        folder,
        sampling_rate=config.sampling_rate,
        frame_rate=config.sampling_rate / config.hop_length,
        codebook_size=config.codebook_size,
        num_codebooks=config.num_quantizers,
    )
    return Part("music_codec", files, lambda path: save_codec(model, path), 4 * model.num_parameters())


def painter_part(folder: str) -> Part:
    """The unCLIP pipeline in diffusers' layout: its safetensors in full precision, without the image encoder."""
    check_folder(folder)
    index = llm.read_json(Path(folder) / PIPELINE_INDEX)
    index |= {name: [None, None] for name in ("image_encoder", "feature_extractor") if name in index}
    files = [Path(folder) / PIPELINE_INDEX]
    for name, kind in index.items():
        if name.startswith("_") or not isinstance(kind, list) or kind[0] is None:
            continue
        component = Path(folder) / name
        found = [path for path in sorted(component.glob("*")) if not any(path.match(glob) for glob in NOT_FETCHED)]
        if not found:
            raise ValueError(f"{folder} lacks {name}, which its {PIPELINE_INDEX} names. Download it whole.")
        weights = [path for path in found if path.suffix == ".safetensors"]
        if not weights and any(component.glob("*.bin")):
            raise ValueError(f"{component} holds its weights as pickles only. Download the .safetensors files.")
        for path in weights:
            pickles.read_safetensors(path)
        files += found

    def write(path: Path) -> None:
        for file in files[1:]:
            target = path / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        (path / PIPELINE_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        CodecShelf(str(path.parent)).save(path.name, path)  # is there already: adds the code

    return Part("unclip", files, write, sum(path.stat().st_size for path in files))


def total_bytes(tensors: dict[str, torch.Tensor]) -> int:
    """Bytes of tensors saved in float32."""
    return 4 * sum(tensor.numel() for tensor in tensors.values())


# ---------------------------------------------------------------- language model


def llm_parts(official: llm.OfficialLLM) -> list[Part]:
    def part(name: str, shard: llm.Shard) -> Part:
        size, made_as = shard.bytes(official.dtype), f"{official.dtype}, {len(shard.shapes)} tensors"
        return Part(name, [shard.source], lambda path: llm.write_shard(official, name, path), size, made_as)

    return [part(name, shard) for name, shard in official.shards.items()]


def write_settings(official: llm.OfficialLLM, wording: dict, folder: Path) -> None:
    """Everything in a model folder but weights and codecs."""
    tokenizer = llm.build_tokenizer(official)
    config = official.config
    config.assign_token_ids(tokenizer)
    llm.write_index(official, folder)
    with torch.device("meta"):
        model = AnyGPTForCausalLM(config)
    # What save_pretrained does besides saving weights: the code for trust_remote_code.
    config.architectures = [type(model).__name__]
    config.auto_map |= dict.fromkeys(PIPELINE_CLASSES, f"modeling_anygpt.{type(model).__name__}")
    custom_object_save(model, folder, config=config)
    config.save_pretrained(folder)
    for name, settings in generation_settings().items():
        GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            # LLaMA's own end too: a reply that breaks off into plain LLaMA is over.
            eos_token_id=[config.eos_token_id, tokenizer.eos_token_id],
            pad_token_id=config.pad_token_id,
            suppress_tokens=official.untrained_ids or None,
            **settings,
        ).save_pretrained(folder, name)
    AnyGPTProcessor(
        tokenizer,
        [spec.to_dict() for spec in config.modalities],
        system_prompt=wording.get("system", SYSTEM_PROMPT if official.chat else None),
        turn_separator="\n" if official.chat else " ",
    ).save_pretrained(folder)
    own = GENERAL_INSTRUCTIONS if official.chat else BASE_INSTRUCTIONS
    write_prompts(own | wording.get("instructions", {}), folder / PROMPTS_FILE)


def generation_settings() -> dict[str, dict]:
    """Generation configs by file name; `GenerationConfig.from_pretrained(folder, name)` reads any but the first."""
    media_settings = {"do_sample": True, "max_new_tokens": RELEASED_MAX_NEW_TOKENS}
    text = {"do_sample": False, "num_beams": PAPER_BEAMS, "max_new_tokens": 100, "output_modalities": ["text"]}
    return {
        "generation_config.json": media_settings | {"modality_presets": RELEASED_PRESETS},
        "generation_config_paper.json": media_settings | {"modality_presets": PAPER_PRESETS},
        "generation_config_paper_text.json": text,
    }
