"""The training scripts on a tiny model: they learn, resume exactly, keep rows apart, save what loads, refuse."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoProcessor

pytest.importorskip("trl")
from training_tools import EMBEDDED, random_row, train, words

from processing_anygpt.tiny_world.language import INSTRUCTIONS
from serving_anygpt.requests import instructions_of

TRAIN = Path(__file__).parent.parent / "train"
RECIPES = sorted(p for n in ("pretrain", "sft", "dpo", "paper") for p in (TRAIN / "configs").glob(f"{n}_*.yaml"))


RUNS = {
    "sft": {"heldout": "{music: {rows: MUSIC}}", "eval_strategy": "steps", "eval_steps": 3},
    "pretrain": {
        "lora_r": 4,
        "lora_vocabulary": "rows",
        "embedding_learning_rate": 1e-4,
        "lora_dropout": 0.1,
        "mixture": "{speech: {rows: SPEECH, rate: 0.7}, music: {rows: MUSIC, rate: 0.3, keep: true}}",
    },
    "dpo": {"pairs": "PAIRS.parquet", "lora_r": 4, "lora_dropout": 0.1, "per_device_train_batch_size": 2},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_stopped_and_resumed_is_the_uninterrupted_one(name, workshop, tmp_path, scripts):
    changes = {
        key: re.sub("[A-Z]{5,}", lambda found: str(workshop / found[0].lower()), str(value))
        for key, value in RUNS[name].items()
    }
    script = scripts(name)
    whole = train(script, words(workshop, tmp_path / "whole", **changes))
    stopped = train(script, words(workshop, tmp_path / "parts", **changes), stop=True)
    assert not (tmp_path / "parts" / "model").exists()
    # The disk was full, or the plug was pulled, while this one was written.
    shutil.copytree(tmp_path / "parts" / "checkpoint-3", tmp_path / "parts" / "checkpoint-4")
    (tmp_path / "parts" / "checkpoint-4" / "trainer_state.json").unlink()
    resumed = train(script, words(workshop, tmp_path / "parts", **changes, resume=True))

    steps = [entry for entry in whole if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5, 6]
    assert len({entry["loss"] for entry in steps}) == 6
    assert resumed[:-1] == whole[:-1]  # every figure of every step, bit for bit; the last line holds a mean of the run
    assert stopped == whole[: len(stopped)]
    for file in sorted((tmp_path / "whole" / "model").glob("*.safetensors")):
        ours = load_file(tmp_path / "parts" / "model" / file.name)
        assert all(torch.equal(tensor, ours[key]) for key, tensor in load_file(file).items())


def test_losses_fall_and_are_told_by_modality(workshop, tmp_path, scripts):
    changes = {
        "max_steps": 12,
        "save_strategy": "no",
        "learning_rate": 3e-2,
        "heldout": f"{{music: {{rows: {workshop / 'music'}}}}}",
    }
    log = train(scripts("sft"), words(workshop, tmp_path, **changes, eval_strategy="steps", eval_steps=12))
    first, last = log[0], [entry for entry in log if "loss" in entry][-1]
    assert last["loss"] < first["loss"] - 0.5
    for entry in (first, last):
        names = [name for name in ("text", "image", "speech", "music") if f"loss_{name}" in entry]
        mean = sum(entry[f"loss_{name}"] * entry[f"share_{name}"] for name in names)
        assert mean == pytest.approx(entry["loss"], rel=1e-3)
        hits = sum(entry[f"accuracy_{name}"] * entry[f"share_{name}"] for name in names)
        assert hits == pytest.approx(entry["mean_token_accuracy"], abs=0.1)
    (heldout,) = [entry for entry in log if "eval_music_loss" in entry]
    assert heldout["eval_music_share_music"] > 0.9 and "eval_music_share_image" not in heldout


@pytest.mark.parametrize("folder", ["model", "tied"])
@pytest.mark.parametrize("vocabulary", ["rows", "all", None], ids=str)
def test_what_is_kept_stays_while_the_rest_is_learned(folder, vocabulary, workshop, tmp_path, scripts):
    """By an adapter, or by all weights beside a teacher."""
    changes = {"model": workshop / folder, "learning_rate": 3e-2}
    changes |= {"max_steps": 16, "save_strategy": "no", "max_grad_norm": 1}
    change, logs = {}, {}
    keeping = {"lora_r": 8, "lora_vocabulary": vocabulary} if vocabulary else {"teacher": workshop / folder}
    for keep in (False, True):
        if keep or vocabulary:
            changes |= keeping
        mixture = {"speech": {"rows": str(workshop / "speech"), "rate": 0.5}}
        mixture["music"] = {"rows": str(workshop / "music"), "rate": 0.5, "keep": keep}
        line = words(workshop, tmp_path / str(keep), **changes, mixture=json.dumps(mixture))
        logs[keep] = [entry for entry in train(scripts("sft"), line) if "loss" in entry]
        first, last = logs[keep][0], logs[keep][-1]
        change[keep] = {name: last[f"loss_{name}"] - first[f"loss_{name}"] for name in ("speech", "music")}
    assert change[True]["speech"] < -3 and change[False]["speech"] < -3
    assert change[False]["music"] < -3  # as samples they are learned
    assert abs(change[True]["music"]) < 1  # random weights say anything, and go on to
    assert logs[True][0]["kept"] == pytest.approx(0, abs=1e-6) and 0 < logs[True][-1]["kept"] < 1
    assert not any("kept" in entry for entry in logs[False])


def test_kept_ids_count_as_often_as_is_said(workshop, tmp_path, scripts):
    losses = []
    for keep in (True, 2, 3.0):
        mixture = {"speech": {"rows": str(workshop / "speech"), "rate": 0.5}}
        mixture["music"] = {"rows": str(workshop / "music"), "rate": 0.5, "keep": keep}
        changes = {"lora_r": 4, "max_steps": 1, "save_strategy": "no", "mixture": json.dumps(mixture)}
        (entry, *_) = train(scripts("sft"), words(workshop, tmp_path / str(keep), **changes))
        losses.append(entry["loss"])
    assert losses[1] > losses[0] + 1 and losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-3)


def test_padding_changes_no_loss(workshop, tmp_path, scripts):
    """Not of kept rows either: an id of padding is a row of its own."""
    losses = []
    for padding in ({}, {"pad_to_multiple_of": 96}):
        mixture = {"speech": {"rows": str(workshop / "speech"), "rate": 0.5}}
        mixture["music"] = {"rows": str(workshop / "music"), "rate": 0.5, "keep": True}
        changes = {"lora_r": 4, "max_steps": 2, "save_strategy": "no", "mixture": json.dumps(mixture)} | padding
        log = train(scripts("sft"), words(workshop, tmp_path / str(len(padding)), **changes))
        losses.append([entry["loss"] for entry in log if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_held_out_packs_come_out_even(scripts):
    """Over three processes, so that none is counted twice; the same rows as before."""
    packs = [np.array([3]), np.array([0, 1, 2, 5]), np.array([4, 6])]
    for size in (1, 2, 3, 5):
        grouped = scripts("token_trainer").in_groups(packs, size)
        assert len(grouped) % size == 0 and sorted(np.concatenate(grouped)) == list(range(7))
    assert len(scripts("token_trainer").in_groups(packs[:1], 2)) == 1  # a row can't be split


def test_the_saved_model_is_complete(workshop, tmp_path, scripts):
    train(scripts("sft"), words(workshop, tmp_path, max_steps=1, save_strategy="no", export_dtype="bfloat16"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == torch.bfloat16
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    assert [spec.name for spec in processor.specs] == ["image", "speech", "music"]
    assert not list((tmp_path / "model").glob("*.bin")) and not list(tmp_path.glob(".*"))


def test_a_model_is_asked_in_the_words_of_the_one_it_was_made_from(workshop, tmp_path, scripts):
    """anygpt-tiny's words, of which it has no file, and those of a file; others have none."""
    save_whole, processor = scripts("merge").save_whole, AutoProcessor.from_pretrained(EMBEDDED)
    model = AutoModelForCausalLM.from_pretrained(workshop / "model")
    for name, base in (("first", EMBEDDED), ("second", tmp_path / "first"), ("other", workshop / "model")):
        save_whole(model, processor, tmp_path / name, str(base))
    assert all(instructions_of(tmp_path / name) == INSTRUCTIONS for name in ("first", "second"))
    assert not (tmp_path / "other" / "prompts.json").exists()


@pytest.mark.parametrize(
    ("folder", "vocabulary"),
    [("model", "rows"), ("tied", "rows"), ("model", "all"), ("tied", "all"), ("model", "frozen")],
)
def test_an_adapter_loads_merges_and_trains_what_was_asked(folder, vocabulary, workshop, tmp_path, scripts):
    changes = {
        "model": workshop / folder,
        "lora_r": 4,
        "lora_vocabulary": vocabulary,
        "max_steps": 2,
        "save_strategy": "no",
    }
    train(scripts("sft"), words(workshop, tmp_path, **changes))
    base = AutoModelForCausalLM.from_pretrained(workshop / folder)
    before = {"in": base.get_input_embeddings().weight.clone(), "out": base.get_output_embeddings().weight.clone()}
    ids = torch.randint(40, 4000, (2, 24))
    with torch.no_grad():
        plain = base(ids).logits
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        on = adapted(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
        assert (merged(ids).logits - on).abs().max() < 1e-5
    if vocabulary == "frozen":
        scripts("merge").main(["--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "again")])
        again = load_file(tmp_path / "again" / "model.safetensors")
        assert all(torch.equal(again[key], tensor) for key, tensor in merged.state_dict().items())
    assert (on - plain).abs().max() > 1e-2
    after = {"in": merged.get_input_embeddings().weight, "out": merged.get_output_embeddings().weight}
    speech = merged.config.modality("speech")
    codes = slice(speech.first_code_id, speech.first_code_id + speech.num_codes)
    for side in ("in", "out"):
        moved = (after[side] != before[side]).any(dim=1)
        assert moved[codes].any() == (vocabulary != "frozen"), side
        assert moved[40:500].any() == (vocabulary == "all"), side  # text


@pytest.mark.parametrize("folder", ["model", "tied"])
@pytest.mark.parametrize("vocabulary", [None, "rows", "all"])
def test_the_vocabulary_learns_at_its_own_pace(folder, vocabulary, workshop, tmp_path, scripts):
    changes = {"model": workshop / folder, "embedding_learning_rate": 1e-12, "max_steps": 2, "save_strategy": "no"}
    if vocabulary:
        changes |= {"lora_r": 4, "lora_vocabulary": vocabulary}
    train(scripts("sft"), words(workshop, tmp_path, **changes))
    before, after = (load_file(f / "model.safetensors") for f in (workshop / folder, tmp_path / "model"))
    moved = {key for key, tensor in before.items() if (tensor - after[key]).abs().max() > 1e-9}
    assert moved and not [key for key in moved if "embed_tokens" in key or "lm_head" in key]


@pytest.mark.parametrize("attention", ["sdpa", "eager", "row_by_row"])
def test_packed_rows_do_not_see_each_other(attention, workshop, scripts):
    """Logits of packed rows are those of the rows alone; another neighbour changes no bit of them."""
    scripts("row_attention")
    model = AutoModelForCausalLM.from_pretrained(workshop / "model", attn_implementation=attention)
    rng = np.random.default_rng(1)
    rows = [random_row(model.config, m, n, rng) for m, n in (("speech", 30), ("image", 64), ("music", 44))]
    collator = scripts("trl.trainer.sft_trainer").DataCollatorForLanguageModeling(0, padding_free=True)

    def packed(rows):
        ids, labels = (sum((row[part] for row in rows), []) for part in (0, 1))
        batch = collator([{"input_ids": ids, "labels": labels, "seq_lengths": [len(row[0]) for row in rows]}])
        with torch.no_grad():
            logits = model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False).logits[0]
        return logits.split([len(row[0]) for row in rows])

    together = packed(rows)
    for row, logits in zip(rows, together, strict=True):
        alone = model(torch.tensor([row[0]]), use_cache=False).logits[0]
        assert (logits - alone).abs().max() <= 2e-6
    other = random_row(model.config, "image", 64, rng)
    other = (other[0][-len(rows[1][0]) :], other[1][-len(rows[1][0]) :])
    ids = [[rows[0], (rows[1][0][::-1], rows[1][1]), rows[2]], rows]
    changed, same = (packed(each) for each in ids)
    assert not torch.equal(changed[1], same[1])
    assert torch.equal(changed[0], same[0]) and torch.equal(changed[2], same[2])


@pytest.mark.parametrize("batch, more", [(2, {}), (1, {"sliding_window": 64}), (1, {"softcap": 30.0})])
def test_attention_row_by_row_refuses_what_it_would_compute_wrongly(batch, more, scripts):
    heads = torch.zeros(batch, 2, 5, 4)
    positions = torch.arange(5)[None]
    with pytest.raises(ValueError, match=f"{next(iter(more), 'padded rows')}.*Use sdpa"):
        scripts("row_attention").row_by_row(
            None, heads, heads, heads, None, scaling=1.0, position_ids=positions, **more
        )


def test_packing_changes_no_gradient(workshop, scripts):
    """The loss of a pack is the mean over its learned ids, as of a padded batch of the same rows."""
    token_trainer = scripts("token_trainer")
    processor = AutoProcessor.from_pretrained(workshop / "model")
    rows, lengths = token_trainer.open_rows(
        "music", {"rows": workshop / "music"}, processor.tokenizer, str(workshop / "cache")
    )
    reader = scripts("token_rows").PackReader(rows, {7: [0, 1, 2]}, "labels")
    example = {key: value[0] for key, value in reader({"pack": [7]}).items()}
    batch = scripts("trl.trainer.sft_trainer").DataCollatorForLanguageModeling(0, padding_free=True)([example])
    grads = []
    for packs in (True, False):
        model = AutoModelForCausalLM.from_pretrained(workshop / "model").train()
        if packs:
            loss = model(**batch, use_cache=False).loss
        else:
            each = [
                model(torch.tensor([rows[i]["input_ids"]]), labels=torch.tensor([rows[i]["labels"]])).loss
                for i in range(3)
            ]
            learned = [sum(label != -100 for label in rows[i]["labels"][1:]) for i in range(3)]
            loss = sum(loss * n for loss, n in zip(each, learned, strict=True)) / sum(learned)
        loss.backward()
        grads.append([loss.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    "run",
    [
        {"checkpointing": "on", "attn_implementation": "eager"},
        {"attn_implementation": "row_by_row", "pad_to_multiple_of": 8},
        pytest.param({"compile": "aot_eager"}, marks=pytest.mark.slow),
        pytest.param({"compile": "aot_eager", "attn_implementation": "row_by_row"}, marks=pytest.mark.slow),
    ],
    ids=["checkpointing", "row by row", "compiled", "compiled, row by row"],
)
def test_speed_and_memory_settings_change_no_loss(run, workshop, tmp_path, scripts):
    script, losses = scripts("sft"), []
    for settings in ({}, run):
        line = words(workshop, tmp_path / f"{len(losses)}", max_steps=2, save_strategy="no", **settings)
        trainer, _ = script.build(*script.parse(script.CLASSES, line))
        trainer.train()
        assert trainer.model.is_activation_checkpointing == ("checkpointing" in settings)
        layers = trainer.model.model.layers
        assert all((layer._compiled_call_impl is not None) == ("compile" in settings) for layer in layers)
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("lora", [{}, {"lora_r": 4, "lora_vocabulary": "rows"}], ids=["full", "lora"])
def test_autocast_narrows_what_runs_between_layers_and_nothing_else(lora, workshop, tmp_path, scripts):
    """Weights and their gradients stay float32, and the losses are those of float32 but for the rounding."""
    script, losses, seen = scripts("sft"), [], []
    for bf16 in (False, True):
        line = words(workshop, tmp_path / str(bf16), max_steps=2, save_strategy="no", bf16=bf16, **lora)
        trainer, _ = script.build(*script.parse(script.CLASSES, line))
        last = trainer.model.get_decoder().layers[-1]

        def look(layer, arguments, options):
            seen.append({arguments[0].dtype, *(table.dtype for table in options["position_embeddings"])})

        last.register_forward_pre_hook(look, with_kwargs=True)
        trainer.train()
        assert seen.pop() == {torch.bfloat16 if bf16 else torch.float32}
        assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2) and losses[1] != losses[0]


def test_preferences_are_learned(workshop, tmp_path, scripts):
    changes = {
        "pairs": workshop / "pairs.parquet",
        "per_device_train_batch_size": 4,
        "max_steps": 8,
        "save_strategy": "no",
    }
    log = train(scripts("dpo"), words(workshop, tmp_path, **changes))
    margins = [entry["rewards/margins"] for entry in log if "rewards/margins" in entry]
    assert margins[0] == pytest.approx(0, abs=1e-6) and margins[-1] > 0.2
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.model_type == "anygpt"


def test_a_pack_holds_the_rows_of_the_tasks_asked_for(workshop, tmp_path, scripts):
    token_trainer = scripts("token_trainer")
    processor = AutoProcessor.from_pretrained(workshop / "model")
    source = {"rows": workshop / "image", "tasks": ["text->image"]}
    rows, lengths = token_trainer.open_rows("a", source, processor.tokenizer, str(tmp_path))
    assert len(rows) == 30 and lengths.tolist() == [len(row["input_ids"]) for row in rows]
    with pytest.raises(ValueError, match="has no task 'image->text'. It has text->image"):
        token_trainer.open_rows("a", source | {"tasks": ["image->text"]}, processor.tokenizer, str(tmp_path))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses(path, scripts):
    """With the CPU in place of what this machine lacks."""
    script = scripts({"paper_stage1": "pretrain", "paper_stage2": "sft"}.get(path.stem, path.stem.split("_")[0]))
    over = ["--use_cpu", "--attn_implementation=sdpa"]
    recipe, config = script.parse(script.CLASSES, [str(path), *over])
    assert config.max_steps > 0 and config.output_dir.startswith("runs/")
