"""The model equals its backbone's own ...ForCausalLM and keeps the habits transformers, TRL and PEFT rely on."""

import copy
import json

import pytest
import torch
from tiny_model import BACKBONES, EOS, table, text_config, tiny_config, tiny_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

from modeling_anygpt import AnyGPTConfig, AnyGPTForCausalLM

IDS = torch.tensor([[0, 0, 40, 7, 8, 42], [40, 9, 10, 11, 12, 42]])
MASK = (IDS != 0).long()


def logits(model, **inputs):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", BACKBONES)
def test_equals_the_backbone_and_shares_its_checkpoints(kind, tied, tmp_path):
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(text_config(kind, tied)).eval()
    model = AnyGPTForCausalLM(tiny_config(kind, tied)).eval()
    assert set(model.state_dict()) == set(reference.state_dict())
    assert not torch.equal(model.model.embed_tokens.weight, reference.model.embed_tokens.weight)
    # Backbone -> file -> AnyGPT -> file -> backbone, no key renamed.
    reference.save_pretrained(tmp_path / "backbone")
    tiny_config(kind, tied).save_pretrained(tmp_path / "backbone")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "backbone").eval()
    assert isinstance(model, AnyGPTForCausalLM)
    model.save_pretrained(tmp_path / "anygpt")
    reference.config.save_pretrained(tmp_path / "anygpt")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "anygpt").eval()
    assert type(again) is type(reference)
    expected = logits(reference, input_ids=IDS, attention_mask=MASK)
    assert torch.equal(logits(model, input_ids=IDS, attention_mask=MASK), expected)
    assert torch.equal(logits(again, input_ids=IDS, attention_mask=MASK), expected)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_soft_cap_of_gemma2():
    torch.manual_seed(0)
    config = text_config("gemma2", final_logit_softcapping=0.5, query_pre_attn_scalar=8)
    reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model = AnyGPTForCausalLM._from_config(AnyGPTConfig(text_config=config), attn_implementation="eager").eval()
    model.load_state_dict(reference.state_dict())
    expected = logits(reference, input_ids=IDS)
    assert expected.abs().max() <= 0.5 and torch.equal(logits(model, input_ids=IDS), expected)


@pytest.mark.parametrize("kind", ["granite", "phi"])
def test_refuses_heads_it_would_get_wrong(kind):
    with pytest.raises(ValueError, match="scales or shifts its logits"):
        AnyGPTForCausalLM(AnyGPTConfig(text_config=text_config(kind, **{"logits_scaling": 4.0})))


def test_loads_by_both_auto_classes(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    expected = logits(tiny_model(), input_ids=IDS)
    for auto in (AutoModelForCausalLM, AutoModelForMultimodalLM, AutoModelForImageTextToText):
        assert torch.equal(logits(auto.from_pretrained(tmp_path), input_ids=IDS), expected)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["architectures"] == ["AnyGPTForCausalLM"] and stored["text_config"]["model_type"] == "llama"


def test_the_cache_is_switched_where_trainer_and_users_switch_it(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).past_key_values is not None
    without = AutoModelForCausalLM.from_pretrained(tmp_path, use_cache=False)
    assert not without.config.use_cache and without(IDS).past_key_values is None
    model.config.use_cache = False
    assert model(IDS).past_key_values is None and model(IDS, use_cache=True).past_key_values is not None


# Flex attention compiles C++ kernels on a CPU: a minute.
@pytest.mark.parametrize("implementation", ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_attention_implementations(implementation, tmp_path):
    model = tiny_model(head_dim=16)
    model.save_pretrained(tmp_path)
    expected = logits(model, input_ids=IDS, attention_mask=MASK)
    other = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=implementation)
    assert other.model.config._attn_implementation == other.config._attn_implementation == implementation
    seen = logits(other, input_ids=IDS, attention_mask=MASK)
    assert torch.allclose(seen[MASK.bool()], expected[MASK.bool()], atol=1e-4)
    model.set_attn_implementation(implementation)
    assert model.model.config._attn_implementation == implementation
    again = logits(model, input_ids=IDS, attention_mask=MASK)
    assert torch.allclose(again[MASK.bool()], expected[MASK.bool()], atol=1e-4)


@pytest.mark.parametrize("version", [2, 3, 4])
def test_flash_attention_is_passed_through(version):
    """Without the library or a GPU it must fail by asking for these, not because AnyGPT lacks support."""
    with pytest.raises((ImportError, ValueError, RuntimeError)) as error:
        AnyGPTForCausalLM._from_config(tiny_config(), attn_implementation=f"flash_attention_{version}")
    assert "does not support Flash" not in str(error.value), error.value


def test_two_models_from_one_config_stay_causal():
    config = tiny_config()
    first = AnyGPTForCausalLM._from_config(config, attn_implementation="eager").eval()
    before = logits(first, input_ids=IDS)
    second = AnyGPTForCausalLM(config)
    assert first.config.text_config is first.model.config and second.config is not first.config
    assert torch.equal(logits(first, input_ids=IDS), before)
    changed = IDS.clone()
    changed[:, -1] = 13
    assert torch.equal(logits(first, input_ids=changed)[:, :-1], before[:, :-1])


def test_loss_and_logits_to_keep():
    model = tiny_model()
    labels = IDS.masked_fill(MASK == 0, -100)
    labels[:, 3] = -100
    with torch.no_grad():
        output = model(input_ids=IDS, attention_mask=MASK, labels=labels)
        halved = model(input_ids=IDS, attention_mask=MASK, labels=labels, num_items_in_batch=1).loss
    expected = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    assert torch.allclose(output.loss, expected)
    assert torch.allclose(halved, expected * (labels[:, 1:] != -100).sum())  # summed over one item, as Trainer asks
    full = output.logits
    assert torch.equal(logits(model, input_ids=IDS, attention_mask=MASK, logits_to_keep=2), full[:, -2:])
    places = torch.tensor([1, 4])
    assert torch.allclose(logits(model, input_ids=IDS, attention_mask=MASK, logits_to_keep=places), full[:, places])
    assert isinstance(model(input_ids=IDS, return_dict=False), tuple)


def test_head_is_reachable_as_trl_does():
    """TRL computes the loss in chunks from the base model's hidden states and the output embeddings."""
    model = tiny_model()
    base = getattr(model, model.base_model_prefix)
    with torch.no_grad():
        hidden = base(input_ids=IDS, use_cache=False).last_hidden_state
        assert torch.equal(model.get_output_embeddings()(hidden), logits(model, input_ids=IDS))
    assert model.get_input_embeddings() is base.embed_tokens and model.get_decoder() is base


def test_packed_documents_do_not_see_each_other():
    model = tiny_model()
    one, two = IDS[1:, :4], IDS[1:, 2:]
    positions = torch.cat([torch.arange(4), torch.arange(4)])[None]
    packed = logits(model, input_ids=torch.cat([one, two], 1), position_ids=positions, use_cache=False)
    assert torch.allclose(packed[:, 4:], logits(model, input_ids=two), atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_resize_token_embeddings(tied, tmp_path):
    model = tiny_model(tied=tied)
    before = logits(model, input_ids=IDS)
    model.resize_token_embeddings(104)
    assert model.config.vocab_size == model.config.text_config.vocab_size == model.model.config.vocab_size == 104
    after = logits(model, input_ids=IDS)
    assert after.shape[-1] == 104 and torch.allclose(after[..., :100], before, atol=1e-5)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), input_ids=IDS), after)


def test_gradient_checkpointing_changes_nothing():
    model = tiny_model().train()
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append(model.model.layers[0].mlp.up_proj.weight.grad.clone())
        model.gradient_checkpointing_enable()
    assert torch.allclose(*gradients, atol=1e-6) and gradients[0].abs().sum() > 0


def test_compiled_forward_is_one_graph():
    model = tiny_model()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.allclose(logits(compiled, input_ids=IDS), logits(model, input_ids=IDS), atol=1e-5)


def test_lora_trains_and_merges():
    peft = pytest.importorskip("peft")
    plain = tiny_model()
    start = logits(plain, input_ids=IDS)
    model = peft.get_peft_model(
        copy.deepcopy(plain),
        peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", modules_to_save=["lm_head"]),
    )
    assert torch.allclose(logits(model, input_ids=IDS), start)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(input_ids=IDS, attention_mask=MASK, labels=IDS.masked_fill(MASK == 0, -100)).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
    adapted = logits(model, input_ids=IDS)
    merged = model.merge_and_unload()
    assert type(merged) is AnyGPTForCausalLM and set(merged.state_dict()) == set(plain.state_dict())
    assert torch.allclose(logits(merged, input_ids=IDS), adapted, atol=1e-5)
    assert not torch.allclose(adapted, start, atol=1e-2)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_with_a_cache_equals_without(cache):
    model = tiny_model()
    # fmt: off
    options = dict(attention_mask=MASK, max_new_tokens=20, do_sample=False, output_modalities=("text", "music"),
                   required_modalities=("music",))
    # fmt: on
    expected = model.generate(IDS, **options, use_cache=False)
    assert torch.equal(model.generate(IDS, **options, cache_implementation=cache, disable_compile=True), expected)
    assert (expected == table()[2].end_token_id).any() and EOS == model.generation_config.eos_token_id
