"""`anygpt init`: a grown backbone says of text what it said before, and can say codes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from backbones import PADDING, make_backbone, make_like, refused
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from modeling_anygpt import check_compatible
from processing_anygpt import AnyGPTProcessor
from processing_anygpt.instructions import load_instructions
from serving_anygpt import cli
from serving_anygpt.grow import NOISE, init
from serving_anygpt.requests import instructions_of

# kind, tied, rows without a token
BACKBONES = {
    "llama": ("llama", False, 0),
    "tied llama": ("llama", True, 0),
    "padded qwen3": ("qwen3", True, PADDING),
    "untied padded qwen3": ("qwen3", False, PADDING),
    "much padded qwen3": ("qwen3", False, 5 * PADDING),
    "gemma3": ("gemma3_text", True, 0),
    "gemma3 with eyes": ("gemma3", True, 0),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`like` and every backbone of the table, once."""
    folder = tmp_path_factory.mktemp("backbones")
    make_like(folder / "like")
    for name, (kind, tied, padding) in BACKBONES.items():
        make_backbone(folder / name, kind, tied, padding)
    return folder


@pytest.mark.parametrize("name", BACKBONES)
def test_text_stays_and_codes_come(name, folder, tmp_path):
    out = tmp_path / "grown"
    init(str(folder / name), str(out), like=str(folder / "like"), quiet=True)
    stock = AutoModelForCausalLM.from_pretrained(folder / name).eval()
    old = AutoTokenizer.from_pretrained(folder / name)
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    processor = AutoProcessor.from_pretrained(out)
    check_compatible(model.config, processor.tokenizer)

    # Text: the same ids, and of every old token exactly the same logit.
    text = "please draw a big red circle"
    inputs = old(text, return_tensors="pt")
    assert processor.tokenizer(text)["input_ids"] == inputs["input_ids"][0].tolist()
    old_ids = torch.tensor(sorted(old.get_vocab().values()))
    with torch.inference_mode():
        before, after = stock(**inputs).logits, model(**inputs).logits
    assert torch.equal(before[..., old_ids], after[..., old_ids])

    # Rows: one for every token, of the mean of the old rows and a tenth of their spread; embedding and head. Their
    # number is the backbone's if that is enough, or a round one.
    vocabulary = processor.tokenizer.get_vocab()
    tokens, rows = max(vocabulary.values()) + 1, model.config.vocab_size
    assert rows == before.shape[-1] >= tokens or (rows % 64 == 0 and 0 <= rows - tokens < 64)
    tied = BACKBONES[name][1]
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied == model.config.tie_word_embeddings
    added = range(before.shape[-1], rows)
    new_ids = torch.tensor(sorted((set(vocabulary.values()) - set(old_ids.tolist())) | set(added)))
    for matrix in (model.model.embed_tokens.weight.detach(), model.lm_head.weight.detach()):
        known, new = matrix[old_ids], matrix[new_ids]
        offsets = (new - known.mean(0)) / known.std(0)
        assert offsets.std() == pytest.approx(NOISE, rel=0.05) and offsets.mean().abs() < 0.01
        assert len(new.unique(dim=0)) == len(new)

    # A row without a token is never said, were it the likeliest.
    unused = sorted(set(range(rows)) - set(vocabulary.values()))
    assert (model.generation_config.suppress_tokens or []) == unused
    bias = torch.zeros(rows)
    bias[unused] = 1e4
    hook = model.lm_head.register_forward_hook(lambda head, given, logits: logits + bias)
    reply = model.generate(**processor(text=text, return_tensors="pt"), output_modalities=("text",), max_new_tokens=8)
    hook.remove()
    assert not set(reply[0].tolist()) & set(unused)

    # Codes: every reply is whole, in what was asked for.
    assert model.config.eos_token_id == vocabulary["<eos>"]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": "a big red circle"}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ends = set(model.generation_config.eos_token_id)
    for spec in model.config.modalities:
        output = model.generate(**prompt, output_modalities=(spec.name,), max_new_tokens=30)[0].tolist()
        *reply, last = output[prompt["input_ids"].shape[1] :]
        start, *codes, end = reply[reply[0] in model.config.space_token_ids :]
        assert (start, end) == (spec.start_token_id, spec.end_token_id) and last in ends
        books, frames = spec.ids_to_codes(codes).shape  # raises unless codebook follows codebook
        assert books == spec.num_codebooks and spec.min_frames <= frames <= spec.max_frames


def test_what_comes_from_where(folder, tmp_path):
    """Rows in the order asked for, ends of the backbone, presets and system prompt of the other AnyGPT."""
    out = tmp_path / "grown"
    init(str(folder / "gemma3"), str(out), ["music", "speech"], like=str(folder / "like"), quiet=True)
    config = AutoConfig.from_pretrained(out)
    assert [spec.name for spec in config.modalities] == ["music", "speech"]
    assert config.modality("music").first_code_id < config.modality("speech").first_code_id
    settings = json.loads((out / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [1, 4] and settings["pad_token_id"] == 0  # "<eos>" was Gemma's own
    assert settings["modality_presets"] == {"speech": {"temperature": 0.5}, "text": {"top_k": 1}}
    AutoModelForCausalLM.from_pretrained(out).save_pretrained(tmp_path / "again")  # whoever trains it saves it
    again = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert again["modality_presets"] == settings["modality_presets"] and again["do_sample"]
    processor = AutoProcessor.from_pretrained(out)
    assert processor.system_prompt == "Be kind."
    assert processor.chat_template.startswith("{{- bos_token -}}")  # this tokenizer puts one, that of `like` does not
    assert "<👀0>" not in processor.tokenizer.get_vocab()


def test_turns_are_separated_as_by_the_other(folder, tmp_path):
    """A base model's turns stand in one line."""
    other = AutoProcessor.from_pretrained(folder / "like")
    shutil.copytree(folder / "like", tmp_path / "base")
    AnyGPTProcessor(other.tokenizer, other.modalities, turn_separator=" ").save_pretrained(tmp_path / "base")
    init(str(folder / "llama"), str(tmp_path / "grown"), ["speech"], like=str(tmp_path / "base"), quiet=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "grown")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert processor.apply_chat_template(turns) == "[Human]: a<eoh> [MMGPT]: b<eos>"
    assert processor.tokenizer.apply_chat_template(turns, tokenize=False).endswith("a<eoh> [MMGPT]: b<eos>")


def test_asked_in_the_words_that_it_will_be_trained_with(folder, tmp_path):
    """The sentences that prepare_data.py draws from: those of the file, and the usual ones where it has none."""
    file, out = tmp_path / "mine.yaml", tmp_path / "grown"
    file.write_text('text->speech: ["say {text}"]')
    rows, like = ["music", "speech"], str(folder / "like")
    init(str(folder / "llama"), str(out), rows, like, instructions=str(file), quiet=True)
    wording = instructions_of(str(out))
    assert wording["text", "speech"] == ["say {text}"]
    assert {f"{a}->{b}": lines for (a, b), lines in wording.items()} == load_instructions(rows, file)


def test_precision_and_seed(folder, tmp_path):
    make_backbone(tmp_path / "half", "llama", dtype=torch.bfloat16)
    heads = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        init(str(tmp_path / "half"), str(tmp_path / name), ["speech"], str(folder / "like"), seed, quiet=True)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert model.dtype == model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
        heads.append(model.lm_head.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_grown_with_the_codecs_of_anygpt_tiny(folder, tmp_path, monkeypatch, capsys):
    """The command, and then the command on what it made: an untrained picture is still a picture."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "--backbone", str(folder / "llama"), "grown", "--modalities", "speech,image"]) == 0
    assert capsys.readouterr().out.startswith("grown: LlamaForCausalLM with speech, image, ")
    codecs = {path.name for path in Path("grown").iterdir() if path.is_dir()}
    assert codecs == {"speech_codec", "soundstorm", "image_codec"}
    assert cli.main("generate --json --model grown --to image --out x.png hello".split()) == 0
    assert Path("x.png").stat().st_size > 0


def broken_backbones(folder: Path, good: Path) -> None:
    """Folders that are no backbone, each for its own reason."""

    def copy(name: str, **changes) -> Path:
        shutil.copytree(good, folder / name)
        config = json.loads((good / "config.json").read_text()) | changes
        (folder / name / "config.json").write_text(json.dumps(config))
        return folder / name

    weights = copy("cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (copy("no tokenizer") / "tokenizer.json").unlink()
    copy("quantised", quantization_config={"quant_method": "gptq", "bits": 4})
    copy("unknown", model_type="unheard_of")
    copy("deeper", num_hidden_layers=9)
    copy("odd heads", num_attention_heads=5)
    (copy("odd tokenizer") / "tokenizer_config.json").write_text("[]")
    tokenizer = AutoTokenizer.from_pretrained(good)
    small = dict(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    for kind, changes in {"cohere": {"intermediate_size": 32}, "gpt2": {}, "phi": {"intermediate_size": 32}}.items():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **small, **changes))
        model.save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    copy("clip", model_type="clip_vision_model")
    (folder / "one.gguf").write_bytes(b"GGUF")
    (folder / "two").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (folder / "two" / name).write_bytes(b"GGUF")
    (folder / "words.txt").write_text("hello")


BAD = {
    "nothing there": ("nowhere", "No such backbone: nowhere"),
    "a file": ("words.txt", "No such backbone: words.txt"),
    "weights cut short": ("cut", "Cannot load cut: "),
    "layers without weights": ("deeper", "The backbone lacks"),
    "impossible sizes": ("odd heads", "Cannot load odd heads: "),
    "tokenizer that is none": ("odd tokenizer", "Cannot load odd tokenizer: "),
    "no tokenizer": ("no tokenizer", "no tokenizer has no tokenizer"),
    "quantised": ("quantised", "quantised"),
    "unknown type": ("unknown", "unheard_of"),
    "no language model": ("clip", "'clip_vision_model', not a causal language model"),
    "scaled logits": ("cohere", "'cohere' scales or shifts its logits"),
    "another build": ("gpt2", "'gpt2' is not made of embed_tokens, layers and a linear head"),
    "head with a bias": ("phi", "'phi' is not made of embed_tokens, layers and a linear head"),
    "AnyGPT already": ("like", "AnyGPT model already"),
    "not a GGUF file": ("one.gguf", "Cannot load .: "),
    "two GGUF files": ("two", "2 GGUF files"),
    "hub, without a network": ("somebody/something", "Cannot load somebody/something: "),
}
BAD_OPTIONS = {
    "unknown modality": ("--modalities video --like like", "Unknown modality 'video'. Known: image, speech, music"),
    "twice": ("--modalities image,image --like like", "each once"),
    "none": ("--modalities= --like like", "Unknown modality ''"),
    "like nothing": ("--like nowhere", "No such model folder: nowhere"),
    "like another": ("--like llama", "'llama' model, not an AnyGPT one"),
    "like without codecs": ("--like bare", "bare has no codec folder 'image_codec'"),
    "like a damaged one": ("--like torn", "torn is not a complete checkpoint"),
    "seed": ("--seed -1", "2^63"),
    "instructions": ("--instructions odd.yaml", "Unknown direction 'smell->text' in odd.yaml"),
    "no instructions": ("--instructions none.yaml", "Can't read the instructions in none.yaml"),
}


@pytest.fixture(scope="module")
def bad(folder, checkpoint, tmp_path_factory):
    """A folder of bad backbones, beside a good one."""
    bad = tmp_path_factory.mktemp("bad")
    broken_backbones(bad, folder / "llama")
    shutil.copytree(folder / "like", bad / "like")
    shutil.copytree(folder / "llama", bad / "llama")
    files = shutil.ignore_patterns("*_codec", "soundstorm", "model.safetensors")
    shutil.copytree(checkpoint, bad / "bare", ignore=files)
    shutil.copytree(bad / "bare", bad / "torn")
    (bad / "torn" / "processor_config.json").write_text("[]")
    (bad / "taken").mkdir()
    (bad / "odd.yaml").write_text('smell->text: ["what is this"]')
    return bad


@pytest.mark.parametrize("name", BAD)
def test_bad_backbones(name, bad, capsys, monkeypatch):
    backbone, message = BAD[name]
    assert message in refused(["init", "--backbone", backbone, "out", "--like", "like"], capsys, monkeypatch, bad)


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(name, bad, capsys, monkeypatch):
    options, message = BAD_OPTIONS[name]
    words = ["init", "--backbone", "llama", "out", *options.split()]
    assert message in refused(words, capsys, monkeypatch, bad)


def test_existing_folder(bad, capsys, monkeypatch):
    words = ["init", "--backbone", "llama", "taken", "--like", "like"]
    assert "taken exists already" in refused(words, capsys, monkeypatch, bad)
