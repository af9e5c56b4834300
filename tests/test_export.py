"""`anygpt export`: the backbone alone, for programs without this package, bit for bit the same."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backbones import make_backbone, make_like, refused
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from serving_anygpt import cli
from serving_anygpt.export import export
from serving_anygpt.grow import init

SCRIPT = """
import importlib.util, sys, torch
assert importlib.util.find_spec("modeling_anygpt") is None
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)("[Human]: a big red <sosp><🗣️3>", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        torch.save([type(model).__name__, ids, model(ids).logits], folder + "/" + sys.argv[1])
"""


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Path:
    """AnyGPT models of four backbones: "llama", "qwen3" (padded, half precision), "gemma3" (tied, nested), "mixtral"
    (of which files name the experts one by one, a model in memory all at once)."""
    folder = tmp_path_factory.mktemp("grown")
    make_like(folder / "like")
    for kind, options in {
        "llama": {},
        "qwen3": {"padding": 9, "dtype": torch.bfloat16},
        "gemma3": {"tied": True},
        "mixtral": {},
    }.items():
        make_backbone(folder / "backbone" / kind, kind, **options)
        init(str(folder / "backbone" / kind), str(folder / kind), like=str(folder / "like"), quiet=True)
    return folder


def test_same_logits_without_this_package(grown, checkpoint, tmp_path):
    sources = {"tiny": Path(checkpoint), **{kind: grown / kind for kind in ("llama", "qwen3", "gemma3", "mixtral")}}
    for name, source in sources.items():
        export(str(source), str(tmp_path / name), quiet=True)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if "site-packages" in path),
        "OMP_NUM_THREADS": "1",
    }
    # -S: an editable installation of this repository puts its finder there, PYTHONPATH alone brings the libraries.
    command = [sys.executable, "-S", "-c", SCRIPT, "result.pt", *(str(tmp_path / name) for name in sources)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    classes = []
    for name, source in sources.items():
        kind, ids, logits = torch.load(tmp_path / name / "result.pt")
        classes.append(kind)
        model = AutoModelForCausalLM.from_pretrained(source).eval()
        assert ids[0, -1] == model.config.modality("speech").token_id(3)
        with torch.inference_mode():
            ours = model(ids).logits
        assert ours.dtype == logits.dtype and torch.equal(ours, logits)
    assert classes == [f"{name}ForCausalLM" for name in ("Llama", "Llama", "Qwen3", "Gemma3", "Mixtral")]


def test_files(checkpoint, tmp_path, monkeypatch, capsys):
    """Weights byte for byte, nothing that asks for this package, and for vLLM no limit on the length of replies."""
    monkeypatch.chdir(tmp_path)
    settings = {}
    for target in ("plain", "vllm"):
        assert cli.main(["export", "--to", target, checkpoint, target]) == 0
        assert capsys.readouterr().out.startswith(f"{target}: LlamaForCausalLM, 4,108 rows of vocabulary, 12.0 MB")
        assert Path(target, "model.safetensors").read_bytes() == Path(checkpoint, "model.safetensors").read_bytes()
        for path in Path(target).glob("*.json"):
            if path.name != "tokenizer.json":
                assert "anygpt" not in path.read_text(encoding="utf-8").lower()
        settings[target] = json.loads(Path(target, "generation_config.json").read_text())
        assert "modality_presets" not in settings[target]
    original = json.loads(Path(checkpoint, "generation_config.json").read_text())
    assert settings["plain"].pop("max_new_tokens") == original["max_new_tokens"]
    assert settings["plain"] == settings["vllm"]
    assert not list(tmp_path.glob(".*"))


def test_shards(grown, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(grown / "llama")
    shutil.copytree(grown / "llama", tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    export(str(tmp_path / "sharded"), str(tmp_path / "out"), quiet=True)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for key, value in model.state_dict().items():
        assert torch.equal(plain.state_dict()[key], value)


def adapter(model, folder: Path, **changes) -> PeftModel:
    """Saves a LoRA adapter of `model` with random weights, as after training; returns the adapted model."""
    torch.manual_seed(2)
    settings = dict(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM") | changes
    tuned = get_peft_model(model, LoraConfig(**settings)).eval()
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    tuned.save_pretrained(folder)
    return tuned


@pytest.mark.parametrize("changes", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}], ids=["layers", "rows too"])
def test_adapter_is_merged(changes, grown, tmp_path):
    tuned = adapter(AutoModelForCausalLM.from_pretrained(grown / "llama"), tmp_path / "lora", **changes)
    export(str(grown / "llama"), str(tmp_path / "out"), adapter=str(tmp_path / "lora"), quiet=True)
    ids = torch.tensor([[1, 20, 30, 40, 700]])
    with torch.inference_mode():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()(ids).logits
        before = AutoModelForCausalLM.from_pretrained(grown / "llama").eval()(ids).logits
        after = tuned(input_ids=ids).logits
    torch.testing.assert_close(merged, after, atol=1e-4, rtol=1e-4)
    assert (merged - before).abs().max() > 0.1


@pytest.fixture(scope="module")
def bad(grown, checkpoint, tmp_path_factory):
    """Broken copies of a grown model, and adapters that don't fit it."""
    bad = tmp_path_factory.mktemp("bad")
    good = bad / "good"
    shutil.copytree(grown / "llama", good)
    shutil.copytree(grown / "backbone" / "llama", bad / "backbone")
    for name in ("cut", "other weights", "other tokenizer", "no tokenizer", "sharded", "broken index", "no weights"):
        shutil.copytree(good, bad / name)
    weights = bad / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    shutil.copy(grown / "gemma3" / "model.safetensors", bad / "other weights")
    shutil.copy(grown / "gemma3" / "tokenizer.json", bad / "other tokenizer")
    (bad / "no tokenizer" / "tokenizer.json").unlink()
    (bad / "no weights" / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(good).save_pretrained(bad / "sharded", max_shard_size="50KB")
    next((bad / "sharded").glob("model-00002-*")).unlink()
    (bad / "broken index" / "model.safetensors.index.json").write_text("[]")
    adapter(AutoModelForCausalLM.from_pretrained(good), bad / "lora")
    deeper = AutoModelForCausalLM.from_pretrained(good)
    deeper.model.layers.append(copy.deepcopy(deeper.model.layers[0]))
    adapter(deeper, bad / "deeper")
    adapter(AutoModelForCausalLM.from_pretrained(checkpoint), bad / "lora of another model")
    shutil.copytree(bad / "lora", bad / "lora cut")
    weights = bad / "lora cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    shutil.copytree(bad / "lora", bad / "lora of nothing")
    (bad / "lora of nothing" / "adapter_config.json").write_text("[]")
    shutil.copytree(good, bad / "odd heads")
    config = json.loads((good / "config.json").read_text())
    config["text_config"]["num_attention_heads"] = 5
    (bad / "odd heads" / "config.json").write_text(json.dumps(config))
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, token_dim=32, num_layers=2)
    get_peft_model(AutoModelForCausalLM.from_pretrained(good), prompt).save_pretrained(bad / "prompt")
    (bad / "taken").mkdir()
    return bad


BAD = {
    "existing folder": ("good taken", "taken exists already"),
    "no folder": ("nowhere out", "No such model folder: nowhere"),
    "no AnyGPT": ("backbone out", "'llama' model, not an AnyGPT one"),
    "truncated": ("cut out", "cut/model.safetensors is not a whole safetensors file"),
    "no weights": ("no_weights out", "no weights lacks model.safetensors"),
    "missing shard": ("sharded out", "sharded lacks model-00002-of-"),
    "broken index": ("broken_index out", "is not an index of shards"),
    "weights of another": ("other_weights out", "tensors are not those of its config.json"),
    "tokenizer of another": ("other_tokenizer out", "tokenizer"),
    "no tokenizer": ("no_tokenizer out", "no tokenizer has no tokenizer"),
    "impossible sizes": ("odd_heads out", "odd heads is not a complete checkpoint"),
    "no config of an adapter": ("good out --adapter lora_of_nothing", "lora of nothing is not a complete"),
    "no adapter": ("good out --adapter taken", "taken holds no adapter"),
    "adapter cut short": ("good out --adapter lora_cut", "lora cut is not an adapter of good"),
    "adapter of other shapes": ("good out --adapter lora_of_another_model", "is not an adapter of good"),
    "adapter of other layers": ("good out --adapter deeper", "is not an adapter of good: 4 of its 12 tensors"),
    "prompt adapter": ("good out --adapter prompt", "of type PROMPT_TUNING"),
    "unknown target": ("good out --to gguf", "gguf"),
}


@pytest.mark.parametrize("name", BAD)
def test_refusals(name, bad, capsys, monkeypatch):
    words, message = BAD[name]
    words = [word.replace("_", " ") for word in words.split()]
    assert message in refused(["export", *words], capsys, monkeypatch, bad)
