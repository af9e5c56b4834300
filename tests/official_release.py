"""A synthetic release of AnyGPT: the files of the official repositories, their names and formats, with small random
weights. Real: the vocabulary (49,418 or 49,420 rows), codebooks, rates, levels and codes a picture. Shrunk: widths and
depths.
"""

import json
from pathlib import Path

import torch
from goldens_io import GOLDENS
from sentencepiece import sentencepiece_model_pb2
from test_unclip import tiny_pipeline
from transformers import EncodecConfig, EncodecModel, LlamaConfig, LlamaForCausalLM

from modeling_anygpt.codecs import (
    Seed2TokenizerConfig,
    Seed2TokenizerModel,
    SoundStormConfig,
    SoundStormModel,
    SpeechTokenizerConfig,
    SpeechTokenizerModel,
)
from modeling_anygpt.conversion.llm import RELEASED_TABLE
from modeling_anygpt.conversion.seed2 import official_tensors

LLAMA_PIECES = 32000
EMBEDDING_WIDTH = 1024  # of SEED-2's embeddings: Stable Diffusion 2.1 unCLIP takes no other


def make_release(folder: Path, chat: bool = False, hidden_size: int = 16) -> list[str]:
    """Writes the release and returns the options of `anygpt convert` that name its files."""
    torch.manual_seed(0)
    write_llm(folder / "llm", chat, hidden_size)
    write_speech(folder / "speechtokenizer", folder / "soundstorm.pt")
    write_seed(folder / "seed_quantizer.pt", folder / "eva_vit_g.pth")
    write_encodec(folder / "encodec")
    write_unclip(folder / "unclip")
    return options(folder)


def options(folder: Path) -> list[str]:
    files = {
        "llm": "llm",
        "speech-tokenizer": "speechtokenizer",
        "soundstorm": "soundstorm.pt",
        "seed": "seed_quantizer.pt",
        "eva": "eva_vit_g.pth",
        "encodec": "encodec",
        "unclip": "unclip",
    }
    return [word for name, file in files.items() for word in (f"--{name}", str(folder / file))]


def added_tokens(chat: bool) -> dict[str, int]:
    """added_tokens.json, in the order of the released training scripts (goldens/prompts/token_ids.json)."""
    tokens = ["[Human]", "[MMGPT]", "<eoh>", "<eos>"]
    for row in RELEASED_TABLE:
        tokens += [*row.tokens(), row.start_token, row.end_token]
    tokens += ["<-Res->", "<-Ins->"] if chat else []
    return {token: LLAMA_PIECES + i for i, token in enumerate(tokens)}


def write_llm(folder: Path, chat: bool, hidden_size: int):
    """Three shards of pickles: embedding, layers, head; float16, and the frequencies that old versions stored."""
    folder.mkdir(parents=True)
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((GOLDENS / "prompts" / "tokenizer.model").read_bytes())
    for i in range(len(model.pieces), LLAMA_PIECES):  # filled up by characters that no text has
        model.pieces.add(piece=chr(0xF0000 + i), score=-float(i))
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    tokens = added_tokens(chat)
    write_json(folder / "added_tokens.json", tokens)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "legacy": True})
    config = LlamaConfig(
        vocab_size=LLAMA_PIECES + len(tokens),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.2,  # logits that differ
    )
    weights = LlamaForCausalLM(config).half().state_dict()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(hidden_size // 4)
    # As transformers 4 wrote it.
    old = {
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "float16",
        "rope_scaling": None,
        "model_type": "llama",
    }
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    kept += ("max_position_embeddings", "rms_norm_eps", "hidden_act", "tie_word_embeddings")
    old |= {key: getattr(config, key) for key in kept} | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    write_json(folder / "config.json", old)
    weight_map = {}
    for number, test in enumerate((is_embedding, is_layer, is_head), 1):
        name = f"pytorch_model-{number:05}-of-00003.bin"
        shard = {key: value.clone() for key, value in weights.items() if test(key)}
        torch.save(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": weight_map})


def is_embedding(key: str) -> bool:
    return "embed_tokens" in key


def is_head(key: str) -> bool:
    return "lm_head" in key


def is_layer(key: str) -> bool:
    return not (is_embedding(key) or is_head(key))


def write_speech(folder: Path, soundstorm: Path):
    folder.mkdir(parents=True)
    config = SpeechTokenizerConfig(n_filters=2, dimension=8, semantic_dimension=6)
    names = {"sampling_rate": "sample_rate", "num_codebooks": "n_q"}
    settings = {names.get(key, key): getattr(config, key) for key in SpeechTokenizerConfig.__annotations__}
    write_json(folder / "config.json", {k: v for k, v in settings.items() if k != "model_type"})
    weights = SpeechTokenizerModel(config).state_dict()
    for key in [key for key in weights if key.endswith("_codebook.embed")]:
        weights[key.replace("embed", "inited")] = torch.ones(1)
        weights[key.replace("embed", "cluster_size")] = torch.ones(config.codebook_size)
        weights[key.replace("embed", "embed_avg")] = weights[key].clone()
    torch.save(weights, folder / "ckpt.dev")
    storm = SoundStormConfig(hidden_size=32, num_hidden_layers=1, head_dim=4, conv_kernel_size=5)
    torch.save(SoundStormModel(storm).state_dict(), soundstorm)


def write_seed(quantizer: Path, vit: Path):
    """The quantizer's file in float16 with tensors of no use, the ViT's without its prefix and with a block more."""
    config = Seed2TokenizerConfig(
        vision_config=dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1),
        qformer_config=dict(hidden_size=48, intermediate_size=48, num_hidden_layers=2),
        decoder_layers=1,
    )
    own = Seed2TokenizerModel(config).state_dict()
    files = {quantizer: {"pos_embed": torch.zeros(1, 32, 48), "blocks.0.norm1.weight": torch.ones(48)}, vit: {}}
    for name, target in official_tensors(config).items():
        value = own[target.name] if target.third is None else own[target.name].chunk(3)[target.third]
        if name.startswith("visual_encoder."):
            name = name.removeprefix("visual_encoder.")
            files[vit][name] = value.half()
            if name.startswith("blocks.0."):
                files[vit][name.replace("blocks.0.", "blocks.1.")] = value.half()
        else:
            files[quantizer][name] = value.half()
    for path, tensors in files.items():
        torch.save({name: value.clone() for name, value in tensors.items()}, path)


def write_encodec(folder: Path, **changes):
    settings = dict(target_bandwidths=[2.2], sampling_rate=32000, audio_channels=1, normalize=False)
    settings |= dict(chunk_length_s=None, hidden_size=16, codebook_dim=16, codebook_size=2048, num_filters=2)
    settings |= dict(upsampling_ratios=[8, 5, 4, 4], use_causal_conv=False, norm_type="weight_norm")
    EncodecModel(EncodecConfig(**settings | dict(num_lstm_layers=1) | changes)).save_pretrained(folder)


def write_unclip(folder: Path):
    """With pickles and an image encoder, as on the hub; neither is to be used."""
    tiny_pipeline(EMBEDDING_WIDTH).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text()) | {
        "_class_name": "StableUnCLIPImg2ImgPipeline",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    }
    write_json(folder / "model_index.json", index)
    (folder / "image_encoder").mkdir()
    (folder / "image_encoder" / "model.safetensors").write_bytes(b"no weights")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"no weights")


def write_json(path: Path, content: dict):
    path.write_text(json.dumps(content, indent=1))
