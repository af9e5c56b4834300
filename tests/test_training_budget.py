"""The arithmetic of a training step agrees with what autograd keeps and what torch counts."""

import importlib
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_model import tiny_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

GB = 10**9


@pytest.fixture
def budget(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "train")
    return importlib.import_module("budget")


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("lora", [False, True])
def test_layers_keep_no_more_than_the_rule_says(kind, lora, budget):
    """Bytes that a layer saves for the backward pass in bfloat16: at most the rule, at least half of it."""
    length, sizes = 32, {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4, "head_dim": 32}

    def saved(layers: int) -> int:
        config = AutoConfig.for_model(kind, vocab_size=16, num_key_value_heads=4, num_hidden_layers=layers, **sizes)
        model = AutoModel.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
        if lora:
            model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept = {}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no other takes its place
            return tensor

        start = torch.randn(1, length, 128, dtype=torch.bfloat16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(inputs_embeds=start, use_cache=False)
        return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights)

    config = AutoConfig.for_model(kind, num_hidden_layers=1, **sizes)
    rule = budget.activation_bytes(config, length, torch.bfloat16)
    assert rule / 2 <= saved(2) - saved(1) <= rule
    assert budget.activation_bytes(config, length, torch.float32) == 2 * rule


def test_checkpointing_is_chosen_where_memory_needs_it(budget):
    class Model7B:
        """LLaMA-2 7B with AnyGPT's rows, in bfloat16, without its weights."""

        config = AutoConfig.for_model("anygpt", text_config={"model_type": "llama"})  # the defaults are 7B's

        def parameters(self):
            return [torch.empty(6_880_000_000, dtype=torch.bfloat16, device="meta")]

    def chosen(**changes):
        options = {"tokens": 4096, "computing": torch.bfloat16, "frozen": True, "shards": 1, "device_bytes": 80 * GB}
        return budget.needs_checkpointing(Model7B(), **options | changes)

    assert not chosen()  # LoRA on one GPU of 80 GB: 14 GB of weights, some 40 GB of activations
    assert chosen(tokens=8192) and chosen(computing=torch.float32) and chosen(device_bytes=40 * GB)
    assert chosen(frozen=False) and not chosen(frozen=False, shards=8)
    assert not chosen(device_bytes=None, tokens=10**6)  # a CPU


@pytest.mark.parametrize("lora", [False, True])
def test_flops_are_those_that_torch_counts(lora, budget):
    model = tiny_model().train()
    model.set_attn_implementation("eager")
    frozen = model
    if lora:
        frozen = get_peft_model(model, LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM"))
        frozen.enable_input_require_grads()  # else the first layer has one product less
    ids = torch.randint(0, 40, (1, 64))
    with FlopCounterMode(display=False) as counter:
        frozen(ids, use_cache=False).logits.sum().backward()
    # Eager attention works out the half that the mask throws away: the context counts twice.
    ours = 64 * budget.flops_per_token(frozen, lora, context=128, learned=1.0)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.15 if lora else 0.01)
