"""`anygpt convert`: what it writes, resumes and refuses. The release is synthetic (official_release.py)."""

import json
import os
import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from goldens_io import GOLDENS, load_goldens, read_json
from official_release import added_tokens, is_embedding, is_head, make_release, options, write_encodec, write_json
from processing_tools import golden
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from modeling_anygpt import AnyGPTConfig, AnyGPTForCausalLM
from modeling_anygpt.conversion import llm, pickles, soundstorm, speech_tokenizer
from processing_anygpt import AnyGPTProcessor
from serving_anygpt import __version__, cli, convert
from serving_anygpt.requests import GENERAL_INSTRUCTIONS, instructions_of
from serving_anygpt.workshop import RECORD

SHARDS = [f"pytorch_model-{number:05}-of-00003.bin" for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    make_release(folder, chat=True)
    return folder


@pytest.fixture
def release(pristine, tmp_path):
    """A copy of the release to spoil; files are links, so spoil by replacing them (`rewrite`, `torch.save`)."""
    folder = tmp_path / "release"
    shutil.copytree(pristine, folder, copy_function=os.link)
    return folder


def run(release: Path, *words: str) -> int:
    return cli.main(["convert", *options(release), str(release / "out"), *words])


def rewrite(path: Path, content: bytes | str | dict):
    path.unlink()
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def change_json(path: Path, **changes):
    rewrite(path, json.loads(path.read_text()) | changes)


def change_tensors(path: Path, change):
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    path.unlink()
    torch.save(tensors, path)


# ---------------------------------------------------------------- what it writes


def test_interrupted_conversion_is_resumed_and_whole(release, monkeypatch, capsys):
    written = []

    def write_shard(official, name, path, write=llm.write_shard):
        if len(written) == 2:
            Path(path).write_bytes(b"half a file")
            raise OSError("No space left on device")
        written.append(name)
        write(official, name, path)

    monkeypatch.setattr(llm, "write_shard", write_shard)
    out, partial = release / "out", release / "out.partial"
    assert run(release) == 2 and "No space left" in capsys.readouterr().err
    assert not out.exists() and len(written) == 2
    made = {path: path.stat().st_mtime_ns for path in partial.rglob("*") if path.is_file() and path.name != RECORD}
    assert not any(path.name == "model-00003-of-00003.safetensors" for path in made)  # nothing half-written

    monkeypatch.undo()
    os.utime(release / "soundstorm.pt", ns=(1, 1))  # downloaded again: this part is not the same any more
    assert run(release) == 0, capsys.readouterr().err
    assert not partial.exists() and not (out / RECORD).exists()
    for path, time in made.items():
        now = (out / path.relative_to(partial)).stat().st_mtime_ns if not path.name.startswith(".") else None
        assert now is None or (now == time) == ("soundstorm" not in path.parts), path

    official = official_tensors(release / "llm")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    for name in set(index["weight_map"].values()):
        for key, value in load_file(out / name).items():
            assert index["weight_map"][key] == name and torch.equal(value, official.pop(key)), key
    assert not official
    assert not [path for path in out.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".dev")]
    assert not [path for path in out.rglob(".*")]

    config = AnyGPTConfig.from_pretrained(out)
    ids = golden("token_ids")["llama2_base"]
    for spec in config.modalities:
        assert spec.first_code_id == ids["ranges"][spec.name]["first_id"]
        assert spec.start_token_id == ids["tokens"][spec.start_token]
    assert (config.eos_token_id, config.instruction_token_id) == (32003, ids["tokens"]["<-Ins->"])
    assert (config.vocab_size, config.dtype, config.pad_token_id) == (49420, torch.float16, 0)

    presets = GenerationConfig.from_pretrained(out).modality_presets
    assert presets["music"] == {"top_k": 200, "repetition_penalty": 1.15} and "image" not in presets
    paper = GenerationConfig.from_pretrained(out, "generation_config_paper.json").modality_presets
    assert paper["image"] == paper["speech"] == {"top_p": 0.7} and paper["music"]["repetition_penalty"] == 1.15
    assert GenerationConfig.from_pretrained(out, "generation_config_paper_text.json").num_beams == 5
    assert instructions_of(str(out)) == GENERAL_INSTRUCTIONS

    assert run(release) == 2  # and not once more
    assert "exists already" in capsys.readouterr().err


def test_settings_of_a_base_model(pristine, tmp_path):
    """Base models are told apart by their vocabulary, and asked in their own format."""
    tokens = added_tokens(chat=False)
    tokens["<soau>"] = 49418  # of a modality that was never trained
    text = LlamaConfig(vocab_size=32000 + len(tokens), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    official = llm.OfficialLLM(
        config=AnyGPTConfig(text_config=text, modalities=list(llm.RELEASED_TABLE)),
        chat=False,
        tokenizer_model=pristine / "llm" / "tokenizer.model",
        tokenizer_settings={},
        added_tokens=tokens,
        shards={},
    )
    prompts = tmp_path / "prompts.json"
    write_json(prompts, {"instructions": {"text": {"image": ["Paint. This is input: {text}"]}}})
    convert.write_settings(official, convert.read_prompts(prompts), tmp_path)
    processor = AnyGPTProcessor.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "hello"}]
    expected = "[Human]: hello<eoh> [MMGPT]:"
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == expected
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == "<s>" + expected
    ids = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    assert ids == tokenizer(expected)["input_ids"] and len(tokenizer) == 49419
    assert GenerationConfig.from_pretrained(tmp_path).suppress_tokens == [49418]
    instructions = instructions_of(str(tmp_path))
    assert instructions["text", "image"] == ["Paint. This is input: {text}"]
    assert instructions["text", "speech"][0].endswith("This is input: {text}")


def test_codecs_by_hub_id_are_written_down_not_fetched(release, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(convert.Workshop, "make", lambda workshop, part, quiet: made.append(part.name))
    names = {"encodec": "facebook/encodec_32khz", "unclip": "stabilityai/stable-diffusion-2-1-unclip"}
    for name in names:
        shutil.rmtree(release / name)
    assert run(release, *(word for name, hub_id in names.items() for word in (f"--{name}", hub_id))) == 0
    assert "music_codec" not in made and "unclip" not in made and len(made) == 6
    rows = {row["name"]: row for row in json.loads((release / "out/processor_config.json").read_text())["modalities"]}
    assert (rows["music"]["codec"], rows["image"]["decoder"]) == tuple(names.values())
    assert (rows["image"]["codec"], rows["speech"]["decoder"]) == ("image_codec", "soundstorm")
    assert AnyGPTConfig.from_pretrained(release / "out").modality("music").codec == names["encodec"]
    assert "facebook/encodec_32khz from the hub when first used" in capsys.readouterr().out


def test_ids_are_those_of_the_file(release):
    """Another order of the added tokens than the released scripts': a checkpoint's own file wins."""
    names = list(json.loads((release / "llm/added_tokens.json").read_text()))
    names = names[-2:] + names[:-2]
    rewrite(release / "llm/added_tokens.json", {name: 32000 + i for i, name in enumerate(names)})
    official = llm.read_official(release / "llm")
    config, tokenizer = official.config, llm.build_tokenizer(official)
    config.assign_token_ids(tokenizer)
    assert (config.response_token_id, config.human_token_id) == (32000, 32002)
    assert config.modality("image").first_code_id == 32006
    assert tokenizer.convert_tokens_to_ids("<👀8191>") == 32006 + 8191


@pytest.mark.parametrize("legacy", [True, False, None])
def test_written_tokenizer_is_the_released_one(legacy, tmp_path):
    """Both kinds of prefix space survive; `null` is what transformers 4 took for true."""
    cases = golden("tokenizer_cases")[f"legacy_{legacy is not False}"]
    tokens = {token: 700 + i for i, token in enumerate(added_tokens(chat=True))}
    text = LlamaConfig(vocab_size=cases["len"], hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    official = llm.OfficialLLM(
        config=AnyGPTConfig(text_config=text, modalities=list(llm.RELEASED_TABLE)),
        chat=False,  # without a system prompt of its own
        tokenizer_model=GOLDENS / "prompts" / "tokenizer.model",
        tokenizer_settings={"legacy": legacy},
        added_tokens=tokens,
        shards={},
    )
    convert.write_settings(official, {}, tmp_path)
    processor, tokenizer = AutoProcessor.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for case in cases["encode"]:
        assert tokenizer(case["text"])["input_ids"] == case["ids"]
        assert processor(text=case["text"], allow_control_tokens=True)["input_ids"] == [case["ids"]]
    assert tokenizer.pad_token_id == 0 and tokenizer.padding_side == "left"
    for messages in (
        [{"role": "user", "content": "hello"}],
        [{"role": "system", "content": "hello"}, {"role": "user", "content": "  hello"}],
    ):
        ids = processor.apply_chat_template(messages, tokenize=True)
        assert tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"] == ids


# ---------------------------------------------------------------- the converters


def official_shapes(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a full official configuration, without memory."""
    return {key: torch.empty(shape, device="meta") for key, shape in read_json(name, "full.json")["shapes"].items()}


@pytest.mark.parametrize("layout", ["old", "new"])
def test_full_speech_tokenizer_is_consumed(layout, tmp_path, monkeypatch):
    full = read_json("speechtokenizer", "full.json")
    names = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    tensors = official_shapes("speechtokenizer")
    if layout == "new":
        for old, new in names.items():
            tensors = {key.replace(old, new): value for key, value in tensors.items()}
    write_json(tmp_path / "config.json", full["config"])
    monkeypatch.setattr(speech_tokenizer, "read_pickle", lambda path: tensors)
    config, kept = speech_tokenizer.read_official(tmp_path / "config.json", "ckpt.dev")
    assert (config.num_codebooks, config.hop_length, config.frame_rate) == (8, 320, 50)
    trained = [key for key in full["shapes"] if not key.endswith(speech_tokenizer.TRAINING_BUFFERS)]
    assert kept.keys() == set(trained)


def test_full_soundstorm_is_consumed(monkeypatch):
    tensors = official_shapes("soundstorm")
    monkeypatch.setattr(soundstorm, "read_pickle", lambda path: tensors)
    config, kept = soundstorm.read_official("soundstorm.pt")
    assert config.to_dict() == soundstorm.SoundStormConfig().to_dict() and kept.keys() == tensors.keys()


def test_full_language_model_has_the_official_tensors():
    """LLaMA-2 7B with 49,418 rows; the paper says 6.88 B parameters."""
    text = LlamaConfig(vocab_size=49418, intermediate_size=11008, max_position_embeddings=4096)
    ours = pickles.meta_shapes(AnyGPTForCausalLM, AnyGPTConfig(text_config=text))
    assert ours == pickles.meta_shapes(LlamaForCausalLM, text)
    assert sum(shape.numel() for shape in ours.values()) == 6_881_103_872


def test_new_weight_norm_layout_gives_the_same_codec(tmp_path):
    weights = load_goldens("speechtokenizer")[1]
    new = {}
    for key, value in weights.items():
        key = key.replace("weight_g", "parametrizations.weight.original0")
        new[key.replace("weight_v", "parametrizations.weight.original1")] = value
    assert new.keys() != weights.keys()
    torch.save(new, tmp_path / "new.pt")
    torch.save(weights, tmp_path / "old.pt")
    config = GOLDENS / "speechtokenizer" / "config.json"
    ours = [speech_tokenizer.load_official(config, tmp_path / name).state_dict() for name in ("new.pt", "old.pt")]
    assert ours[0].keys() == ours[1].keys()
    assert all(torch.equal(ours[0][key], ours[1][key]) for key in ours[0])


def converted(official: llm.OfficialLLM, folder: Path) -> dict[str, torch.Tensor]:
    """All tensors that `write_shard` writes, as its own index lists them."""
    tensors = {}
    for name in official.shards:
        llm.write_shard(official, name, folder / name)
        tensors |= load_file(folder / name)
    return tensors


def official_tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for shard in SHARDS:
        tensors |= torch.load(folder / shard, weights_only=True)
    return {key: value for key, value in tensors.items() if not key.endswith("inv_freq")}


def single_file(folder: Path, tensors: dict, **options):
    for path in folder.glob("pytorch_model*"):
        path.unlink()
    torch.save(tensors, folder / "pytorch_model.bin", **options)


def test_shards_of_safetensors_are_read(release, tmp_path):
    folder = release / "llm"
    tensors = official_tensors(folder)
    for shard in SHARDS:
        save_file(torch.load(folder / shard, weights_only=True), folder / shard.replace(".bin", ".safetensors"))
        (folder / shard).unlink()
    index = (folder / "pytorch_model.bin.index.json").read_text()
    rewrite(folder / "pytorch_model.bin.index.json", "{}")  # not looked at
    (folder / "model.safetensors.index.json").write_text(index.replace(".bin", ".safetensors"))
    ours = converted(llm.read_official(folder), tmp_path)
    assert ours.keys() == tensors.keys() and all(torch.equal(ours[key], tensors[key]) for key in ours)


def test_a_single_pickle_as_released(release, tmp_path):
    """AnyGPT-base is one file whose tensors carry attributes (`_rebuild_from_type_v2` in its pickle). It is cut into
    files of ours, and converted to half the size if asked."""
    folder = release / "llm"
    tensors = {key: value.float() for key, value in official_tensors(folder).items()}
    for value in tensors.values():
        value.note = {"from": "a trainer"}
    single_file(folder, tensors)
    assert b"_rebuild_from_type_v2" in (folder / "pytorch_model.bin").read_bytes()
    official = llm.read_official(folder, max_shard_bytes=4 * 49420 * 16)  # the embedding
    assert [len(shard.shapes) for shard in official.shards.values()] == [1, len(tensors) - 2, 1]
    ours = converted(official, tmp_path)
    assert ours.keys() == tensors.keys() and all(torch.equal(ours[key], tensors[key]) for key in ours)
    llm.write_index(official, tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["lm_head.weight"] == "model-00003-of-00003.safetensors"
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors.values())
    half = llm.read_official(folder, dtype=torch.bfloat16)
    assert list(half.shards) == ["model.safetensors"] and half.config.dtype == torch.bfloat16
    assert all(torch.equal(value, tensors[key].bfloat16()) for key, value in converted(half, tmp_path).items())


def test_a_pickle_from_before_torch_1_6(release, tmp_path):
    tensors = official_tensors(release / "llm")
    single_file(release / "llm", tensors, _use_new_zipfile_serialization=False)
    ours = converted(llm.read_official(release / "llm"), tmp_path)
    assert all(torch.equal(ours[key], value) for key, value in tensors.items())


def test_tokens_of_a_modality_that_was_never_trained_are_known(release):
    """The sizes of the released files tell that their vocabulary has one (docs/released-checkpoints.md)."""
    folder = release / "llm"
    added = json.loads((folder / "added_tokens.json").read_text())
    row = llm.UNTRAINED
    added |= {token: 49420 + i for i, token in enumerate([*row.tokens(), row.start_token, row.end_token])}
    rewrite(folder / "added_tokens.json", added)
    change_json(folder / "config.json", vocab_size=49420 + 4098)
    tensors = official_tensors(folder)
    single_file(folder, {k: v.repeat(2, 1)[: 49420 + 4098] if len(v) == 49420 else v for k, v in tensors.items()})
    official = llm.read_official(folder)
    assert official.untrained_ids == list(range(49420, 49420 + 4098))


# ---------------------------------------------------------------- what it refuses


class Payload:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def cut(path: Path, share: float = 0.6):
    content = path.read_bytes()
    rewrite(path, content[: int(share * len(content))])


def swap(one: Path, other: Path):
    other.rename(one.with_name("third"))
    one.rename(other)
    one.with_name("third").rename(one)


def to_safetensors(folder: Path, share: float = 1.0):
    """The language model as one safetensors file, of which `share` is there."""
    tensors = {}
    for shard in SHARDS:
        tensors |= torch.load(folder / shard, weights_only=True)
        (folder / shard).unlink()
    (folder / "pytorch_model.bin.index.json").unlink()
    save_file(tensors, folder / "model.safetensors")
    cut(folder / "model.safetensors", share)


def drop_tokens(folder: Path, *tokens: str, shift: bool = False):
    """Removes added tokens; `shift` closes the gap in the ids."""
    added = json.loads((folder / "added_tokens.json").read_text())
    added = {token: i for token, i in added.items() if token not in tokens}
    if shift:
        added = {token: 32000 + i for i, token in enumerate(added)}
    rewrite(folder / "added_tokens.json", added)


def swap_tokens(folder: Path, one: str, other: str):
    added = json.loads((folder / "added_tokens.json").read_text())
    added[one], added[other] = added[other], added[one]
    rewrite(folder / "added_tokens.json", added)


def poison(path: Path):
    tensors = torch.load(path, weights_only=True)
    path.unlink()
    torch.save(tensors | {"extra": Payload(path.parent / "trace")}, path)


def fewer_rows(folder: Path):
    for name, test in ((SHARDS[0], is_embedding), (SHARDS[2], is_head)):
        change_tensors(
            folder / name, lambda t, test=test: t.update({k: v[:-2].clone() for k, v in t.items() if test(k)})
        )


SPOILED = {
    "llm: no such folder": (lambda r: shutil.rmtree(r / "llm"), "No such folder"),
    "llm: another model": (
        lambda r: change_json(r / "llm/config.json", model_type="encodec"),
        "holds a 'encodec' model",
    ),
    "llm: broken config": (lambda r: rewrite(r / "llm/config.json", "{"), "config.json is not valid JSON"),
    "llm: wider in the config": (
        lambda r: change_json(r / "llm/config.json", hidden_size=32),
        r"not those of its config.json: of \d+ tensors \d+ of another shape \(lm_head.weight is \[49420, 16\], exp",
    ),
    "llm: text for a number in the config": (
        lambda r: change_json(r / "llm/config.json", hidden_size="16"),
        "config.json does not describe a 'llama' model: .*hidden_size",
    ),
    "llm: nonsense in the config": (
        lambda r: change_json(r / "llm/config.json", num_attention_heads=0),
        "config.json does not describe|No AnyGPTForCausalLM can be built",
    ),
    "llm: config of the base model": (
        lambda r: change_json(r / "llm/config.json", vocab_size=49418),
        "tokenizer has 49420 tokens .* vocab_size 49418, the embedding has 49420 rows",
    ),
    "llm: weights of the base model": (
        lambda r: fewer_rows(r / "llm"),
        "tokenizer has 49420 tokens .* vocab_size 49420, the embedding has 49418 rows",
    ),
    "llm: tokens of the base model": (
        lambda r: drop_tokens(r / "llm", "<-Ins->", "<-Res->"),
        "tokenizer has 49418 tokens .* vocab_size 49420, the embedding has 49420 rows",
    ),
    "llm: no added tokens": (lambda r: (r / "llm/added_tokens.json").unlink(), "has no added_tokens.json"),
    "llm: a code lacks": (
        lambda r: drop_tokens(r / "llm", "<👀77>", shift=True),
        "lacks 1 of the 8194 tokens of image \\(<👀77>\\)",
    ),
    "llm: a gap in the ids": (lambda r: drop_tokens(r / "llm", "<🎶77>"), "ids 32000 to 49418, once each"),
    "llm: codes out of order": (lambda r: swap_tokens(r / "llm", "<👀7>", "<👀8>"), "image have no consecutive ids"),
    "llm: half a chat model": (
        lambda r: rewrite(
            r / "llm/added_tokens.json",
            (r / "llm/added_tokens.json").read_text().replace("<-Ins->", "<-Other->"),
        ),
        "it lacks <-Ins->",
    ),
    "llm: no tokenizer": (lambda r: (r / "llm/tokenizer.model").unlink(), "No such file: .*tokenizer.model"),
    "llm: tokenizer is a web page": (
        lambda r: rewrite(r / "llm/tokenizer.model", "<!DOCTYPE html><html></html>"),
        "tokenizer.model is a web page",
    ),
    "llm: tokenizer is noise": (
        lambda r: rewrite(r / "llm/tokenizer.model", b"\xff\x00" * 500),
        "not a SentencePiece model",
    ),
    "llm: a shard lacks": (lambda r: (r / "llm" / SHARDS[1]).unlink(), "lacks 1 of 3 shards: pytorch_model-00002"),
    "llm: no weights": (
        lambda r: [path.unlink() for path in (r / "llm").glob("pytorch_model*")],
        "holds no weights",
    ),
    "llm: a shard is a pointer": (
        lambda r: rewrite(r / "llm" / SHARDS[0], "version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        "is a Git LFS pointer",
    ),
    "llm: a shard is cut off": (lambda r: cut(r / "llm" / SHARDS[0]), "is cut off"),
    "llm: safetensors cut off": (lambda r: to_safetensors(r / "llm", 0.9), "model.safetensors is cut off"),
    "llm: a shard with code": (lambda r: poison(r / "llm" / SHARDS[1]), r"holds code \(posix.mkdir\)"),
    "llm: mixed types": (
        lambda r: change_tensors(r / "llm" / SHARDS[2], lambda t: t.update({k: v.float() for k, v in t.items()})),
        "are torch.float16, torch.float32.* say which one",
    ),
    "llm: a tensor lacks": (
        lambda r: change_tensors(r / "llm" / SHARDS[1], lambda t: t.pop("model.norm.weight")),
        r"1 missing \(model.norm.weight\)",
    ),
    "llm: a tensor too many": (
        lambda r: change_tensors(r / "llm" / SHARDS[1], lambda t: t.update(bias=torch.ones(1).half())),
        r"1 unknown \(bias\)",
    ),
    "speech: empty file": (lambda r: rewrite(r / "speechtokenizer/ckpt.dev", b""), "ckpt.dev is empty"),
    "speech: web page": (lambda r: rewrite(r / "speechtokenizer/ckpt.dev", "<html>"), "ckpt.dev is a web page"),
    "speech: no checkpoint": (lambda r: (r / "speechtokenizer/ckpt.dev").unlink(), "needs config.json and one of"),
    "speech: config of another": (
        lambda r: change_json(r / "speechtokenizer/config.json", n_filters=4),
        "does not hold the SpeechTokenizer that .* describes",
    ),
    "speech: no layers in the config": (
        lambda r: change_json(r / "speechtokenizer/config.json", lstm_layers=0),
        "No SpeechTokenizerModel can be built",
    ),
    "speech: config of the language model": (
        lambda r: rewrite(r / "speechtokenizer/config.json", (r / "llm/config.json").read_text()),
        "is not the config.json of a SpeechTokenizer",
    ),
    "speech: another rate": (
        lambda r: change_json(r / "speechtokenizer/config.json", sample_rate=24000),
        "has sampling_rate 24000, the speech codec of AnyGPT has 16000",
    ),
    "speech: whole pickle": (
        lambda r: rewrite(r / "speechtokenizer/ckpt.dev", pickle.dumps(Payload(r / "trace"), protocol=2)),
        r"holds code \(posix.mkdir\)",
    ),
    "soundstorm: another model": (
        lambda r: swap(r / "soundstorm.pt", r / "seed_quantizer.pt"),
        "is no SoundStorm of AnyGPT's layout",
    ),
    "soundstorm: fewer levels": (
        lambda r: change_tensors(r / "soundstorm.pt", fewer_levels),
        "is no SoundStorm of AnyGPT's layout|turns 1024 semantic codes into 6 levels",
    ),
    "soundstorm: a training checkpoint": (
        lambda r: change_tensors(r / "soundstorm.pt", lambda t: t.update(optimizer={})),
        "is not a flat dict of tensors",
    ),
    "seed: swapped files": (
        lambda r: swap(r / "seed_quantizer.pt", r / "eva_vit_g.pth"),
        "Are the two files in each other's place",
    ),
    "seed: a layer lacks": (
        lambda r: change_tensors(r / "seed_quantizer.pt", lambda t: t.pop("image_down.0.weight")),
        r"1 missing \(image_down.0.weight\)",
    ),
    "seed: noise": (lambda r: rewrite(r / "eva_vit_g.pth", b"noise" * 99), "eva_vit_g.pth .* is refused|is damaged"),
    "encodec: another rate": (
        lambda r: (shutil.rmtree(r / "encodec"), write_encodec(r / "encodec", sampling_rate=24000)),
        "has sampling_rate 24000, the music codec of AnyGPT has 32000",
    ),
    "encodec: cut off": (lambda r: cut(r / "encodec/model.safetensors"), "model.safetensors is cut off"),
    "encodec: the language model": (
        lambda r: (shutil.rmtree(r / "encodec"), shutil.copytree(r / "llm", r / "encodec")),
        "holds a 'llama' model, expected an 'encodec' one",
    ),
    "encodec: neither folder nor id": (lambda r: shutil.rmtree(r / "encodec"), "or a hub id"),
    "unclip: no pipeline": (lambda r: (r / "unclip/model_index.json").unlink(), "has no model_index.json"),
    "unclip: another pipeline": (
        lambda r: change_json(r / "unclip/model_index.json", _class_name="StableDiffusionPipeline"),
        "is a StableDiffusionPipeline",
    ),
    "unclip: a component lacks": (lambda r: shutil.rmtree(r / "unclip/vae"), "lacks vae"),
    "unclip: pickles only": (
        lambda r: (r / "unclip/unet/diffusion_pytorch_model.safetensors").unlink(),
        "weights as pickles only",
    ),
    "out: another folder's partial": (
        lambda r: ((r / "out.partial").mkdir(), (r / "out.partial/notes.txt").write_text("mine")),
        "is not an unfinished conversion",
    ),
}


def fewer_levels(tensors: dict):
    """SoundStorm's head for six levels in the place of seven."""
    for key in ("net.to_logits.2.weight", "net.to_logits.2.bias"):
        tensors[key] = tensors[key][:6].clone()


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_input_is_one_line_and_leaves_nothing(case, release, capsys):
    spoil, message = SPOILED[case]
    spoil(release)
    before = {path for path in release.parent.rglob("*")}
    assert run(release) == 2
    error = capsys.readouterr().err.splitlines()
    last = error[-1]
    assert last.startswith("anygpt: error: ") and sum("error" in line for line in error) == 1
    assert re.search(message, last), last
    assert {path for path in release.parent.rglob("*")} == before  # no output folder, and no code was run


def test_options_are_checked(release, capsys):
    (release / "prompts.json").write_text('{"instructions": {"text": {"speech": ["no place for it"]}}}')
    assert run(release, "--prompts", str(release / "prompts.json")) == 2
    assert "must hold {text} exactly once" in capsys.readouterr().err
    assert run(release, "--chat", "--prompts", str(release / "none.json")) == 2
    assert "No such file" in capsys.readouterr().err


def test_wrong_input_found_late_removes_the_folder_unless_an_earlier_run_left_it(release, monkeypatch, capsys):
    def make(workshop, part, quiet):
        raise ValueError("found late")

    monkeypatch.setattr(convert.Workshop, "make", make)
    partial = release / "out.partial"
    assert run(release) == 2 and not partial.exists()
    partial.mkdir()
    write_json(partial / RECORD, {"anygpt": __version__, "parts": {}})
    assert run(release) == 2 and partial.exists() and not (release / "out").exists()
    assert capsys.readouterr().err.count("found late") == 2


def test_a_full_disk_is_noticed_before(release, monkeypatch, capsys):
    monkeypatch.setattr("serving_anygpt.workshop.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    assert run(release) == 2
    assert "the disk has 0.0 GB free" in capsys.readouterr().err and not (release / "out.partial").exists()
