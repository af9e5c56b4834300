"""The training scripts refuse what can't be, in a line, and leave nothing half written."""

import importlib
import json
import re
import resource
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

pytest.importorskip("trl")
from training_tools import small_checkpoint, train, words

TRAIN = Path(__file__).parent.parent / "train"


ERRORS = {
    "unknown key": ({"lerning_rate": 1}, "Unknown key 'lerning_rate'.*learning_rate"),
    "own key": (
        {"num_train_epochs": 2},
        "num_train_epochs is set by this script: use max_steps",
    ),
    "not a number": ({"max_steps": "many"}, "invalid int value: 'many'"),
    "no steps": ({"max_steps": 0}, "max_steps is missing"),
    "padding to nothing": ({"pad_to_multiple_of": 0}, "pad_to_multiple_of: got 0, allowed: 1 or more"),
    "no gpu": ({"use_cpu": False}, "torch sees no GPU"),
    "flash on a cpu": ({"attn_implementation": "flash_attention_4"}, "needs a GPU. On a CPU use sdpa"),
    "no batch": ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: got 0, allowed: 1 or more"),
    "shards from here": ({"fsdp": "full_shard"}, "fsdp is set by this script: use accelerate launch"),
    "no rate of learning": ({"learning_rate": "nan"}, "learning_rate: got nan, allowed: 0 or more"),
    "bad choice": ({"lora_vocabulary": "some", "lora_r": 4}, "allowed: frozen, rows, all"),
    "a pace for what stands still": ({"lora_r": 4, "embedding_learning_rate": 1e-4}, "the vocabulary is frozen"),
    "no pace": ({"embedding_learning_rate": 0}, "got 0.0, allowed: above 0"),
    "rows without lora": ({"lora_vocabulary": "rows"}, "Without LoRA"),
    "lora from scratch": ({"from_scratch": True, "lora_r": 4}, "an adapter needs a trained base"),
    "no reporter": ({"report_to": "trackio"}, "trackio is not installed. pip install trackio"),
    "no liger": ({"liger": True}, "liger-kernel is not installed"),
    "no backend": ({"compile": True}, "got 'True', allowed: .*inductor"),
    "no compiler": ({"compile": "inductor"}, "inductor needs a C.. compiler.*, and there is no gone"),
    "no checkpoint": ({"model": "WORKSHOP"}, "it has no config.json"),
    "other model": ({"model": "WORKSHOP/llama"}, "is a 'llama' checkpoint, not AnyGPT's. Grow it first"),
    "no weights": ({"model": "WORKSHOP/hollow"}, "has no usable weights"),
    "other weights": ({"model": "WORKSHOP/unfit"}, "do not fit its config.json"),
    "no rows": ({"mixture": "{a: {rows: WORKSHOP, rate: 1}}"}, "has no manifest.json"),
    "kept without an adapter": (
        {"mixture": "{a: {rows: WORKSHOP/speech, rate: 1, keep: true}}"},
        "Add lora_r.*or teacher",
    ),
    "nothing to teach": ({"teacher": "WORKSHOP/model"}, "no source of the mixture says keep"),
    "no teacher": (
        {"mixture": "{a: {rows: WORKSHOP/speech, rate: 1, keep: true}}", "teacher": "WORKSHOP"},
        "it has no config.json",
    ),
    "kept how much": ({"mixture": "{a: {rows: WORKSHOP/speech, rate: 1, keep: much}}"}, "keep true or a number"),
    "kept away": ({"mixture": "{a: {rows: WORKSHOP/speech, rate: 1, keep: -1}}"}, "keep true or a number"),
    "kept for examination": ({"heldout": "{a: {rows: WORKSHOP/speech, keep: true}}"}, "mixture only"),
    "no rate": ({"mixture": "{a: {rows: WORKSHOP/speech}}"}, "need rate, rows"),
    "rate of letters": ({"mixture": "{a: {rows: WORKSHOP/speech, rate: lots}}"}, "rate a number"),
    "twice": (
        {"mixture": "{a: {rows: WORKSHOP/speech, rate: 1}, a: {rows: WORKSHOP/image, rate: 1}}"},
        "mixture is no YAML: a stands twice",
    ),
    "no tasks": ({"mixture": "{a: {rows: WORKSHOP/speech, rate: 1, tasks: []}}"}, "tasks a list of names"),
    "numbered tasks": ({"mixture": "{a: {rows: WORKSHOP/speech, rate: 1, tasks: [1]}}"}, "tasks a list of names"),
    "nothing held out": ({"heldout_rows": 0}, "heldout_rows: got 0, allowed: 1 or more"),
    "held out too long": (
        {
            "heldout": "{a: {rows: WORKSHOP/image}}",
            "max_length": 48,
            "mixture": "{a: {rows: WORKSHOP/speech, rate: 1}}",
        },
        "heldout: no row of 'a' fits into 48 ids",
    ),
    "broken mixture": ({"mixture": "{a: {rows"}, "mixture is no YAML"),
    "no column": ({"mixture": "{a: {rows: WORKSHOP/lame, rate: 1}}"}, "has no column 'labels'"),
    "other vocabulary": ({"mixture": "{a: {rows: WORKSHOP/foreign, rate: 1}}"}, "another vocabulary"),
    "too short": ({"max_length": 8}, "no row of 'speech' fits into 8 ids"),
    "nothing to resume": ({"resume": True}, "holds no complete checkpoint"),
    "no folder": ({"output_dir": "WORKSHOP/pairs.parquet/out"}, "can't be written"),
}


@pytest.fixture(scope="module")
def broken(workshop) -> Path:
    """Checkpoints and rows with something wrong, beside the good ones."""
    (workshop / "llama").mkdir()
    (workshop / "llama" / "config.json").write_text('{"model_type": "llama"}')
    for name in ("hollow", "unfit"):
        shutil.copytree(workshop / "model", workshop / name)
        (workshop / name / "model.safetensors").unlink()
    tensors = load_file(workshop / "model" / "model.safetensors")
    tensors.pop("lm_head.weight")
    save_file(tensors, workshop / "unfit" / "model.safetensors", {"format": "pt"})
    shutil.copytree(workshop / "speech", workshop / "lame")
    for shard in (workshop / "lame").glob("*.parquet"):
        pq.write_table(pq.read_table(shard).drop_columns("labels"), shard)
    shutil.copytree(workshop / "speech", workshop / "foreign")
    manifest = json.loads((workshop / "foreign" / "manifest.json").read_text())
    (workshop / "foreign" / "manifest.json").write_text(json.dumps(manifest | {"tokenizer": "0"}))
    return workshop


@pytest.mark.parametrize("case", ERRORS)
def test_what_is_wrong_is_said_in_one_line(case, broken, tmp_path, scripts, monkeypatch, capsys):
    monkeypatch.setattr(scripts("recipe"), "find_spec", lambda name: None)
    monkeypatch.setenv("CXX", "gone")
    changes, message = ERRORS[case]
    changes = {key: str(value).replace("WORKSHOP", str(broken)) for key, value in changes.items()}
    monkeypatch.setattr(sys, "argv", ["sft.py", *words(broken, tmp_path / "out", **changes)])
    with pytest.raises(SystemExit) as stopped:
        scripts("settings").run_script(scripts("sft").main)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2
    assert re.search(message, said), said
    assert not (tmp_path / "out" / "model").exists()


def test_a_run_is_not_written_over(workshop, tmp_path, scripts):
    train(scripts("sft"), words(workshop, tmp_path, max_steps=1))
    with pytest.raises(ValueError, match="holds a run already. Add --resume"):
        train(scripts("sft"), words(workshop, tmp_path, max_steps=1))


OTHERS = {
    "seed": (7, 42),
    "learning_rate": (0.5, 0.01),
    "lr_scheduler_type": ("cosine", "linear"),
    "max_steps": (9, 3),
}


@pytest.fixture(scope="module")
def begun(workshop, tmp_path_factory) -> Path:
    """A run that ended, to be gone on with; its rows are a copy."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(workshop / "speech", folder / "rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TRAIN)
        train(importlib.import_module("sft"), resumed(workshop, folder, max_steps=3, resume=False))
    return folder


def resumed(workshop: Path, folder: Path, **changes) -> list[str]:
    mixture = json.dumps({"speech": {"rows": str(folder / "rows"), "rate": 1}})
    return words(workshop, folder / "run", **{"max_steps": 3, "resume": True, "mixture": mixture} | changes)


@pytest.mark.parametrize("key", OTHERS)
def test_a_run_is_not_resumed_with_other_settings(key, begun, workshop, scripts):
    now, before = OTHERS[key]
    with pytest.raises(ValueError, match=f"resume: {key} was '?{before}'? when .* and is '?{now}'? now"):
        train(scripts("sft"), resumed(workshop, begun, **{key: now}))


def test_a_run_is_not_resumed_with_other_rows(begun, workshop, scripts):
    folder = begun.with_name("others")
    shutil.copytree(begun, folder)
    settings = folder / "run" / "settings.yaml"
    settings.write_text(settings.read_text().replace(str(begun), str(folder)))
    line = resumed(workshop, folder)
    train(scripts("sft"), line)  # the same rows elsewhere
    shutil.rmtree(folder / "rows")
    shutil.copytree(workshop / "music", folder / "rows")
    with pytest.raises(ValueError, match="resume: data was"):
        train(scripts("sft"), line)
    settings.write_text("")
    with pytest.raises(ValueError, match="settings.yaml holds no settings"):
        train(scripts("sft"), line)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_damaged_checkpoint_is_named(name, begun, workshop, scripts):
    damaged = sorted((begun / "run").glob("checkpoint-*"))[-1] / name
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    try:
        with pytest.raises(ValueError, match=rf"{name} is damaged .* Remove {damaged.parent.name} to go on from"):
            train(scripts("sft"), resumed(workshop, begun))
    finally:
        damaged.write_bytes(content)


def test_a_constant_rate_may_go_on_for_longer(workshop, tmp_path, scripts):
    whole, parts = ({"lr_scheduler_type": "constant", "max_steps": steps} for steps in (6, 3))
    wanted = train(scripts("sft"), words(workshop, tmp_path / "whole", **whole))
    train(scripts("sft"), words(workshop, tmp_path / "parts", **parts))
    (tmp_path / "parts" / "checkpoint-best").mkdir()  # somebody's copy
    log = train(scripts("sft"), words(workshop, tmp_path / "parts", **whole, resume=True))
    assert [entry["loss"] for entry in log if "loss" in entry] == [e["loss"] for e in wanted if "loss" in e]


def test_a_run_that_breaks_down_stops_before_it_is_saved(workshop, tmp_path, scripts):
    """By exploding weights: logged once in four steps, to be saved in the second, which is too late to learn of it."""
    changes = {"learning_rate": 1e30, "max_grad_norm": 0, "logging_steps": 4, "save_steps": 2}
    with pytest.raises(ValueError, match="At step 2 the loss is (nan|inf). Lower learning_rate"):
        train(scripts("sft"), words(workshop, tmp_path, **changes))
    assert not list(tmp_path.glob("checkpoint-*")) and not (tmp_path / "model").exists()
    with pytest.raises(ValueError, match="holds NaN or infinity"):  # the loss before the only step was a number
        train(scripts("sft"), words(workshop, tmp_path, **changes | {"max_steps": 1, "weight_decay": 1e30}))
    assert not (tmp_path / "model").exists()


@contextmanager
def no_file_beyond(size: int):
    """As if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_nothing_half_written(workshop, tmp_path, scripts):
    """No file may grow beyond 100 kB: the weights don't fit."""
    with no_file_beyond(100_000), pytest.raises(OSError, match="checkpoint-3 can't be written.*disk full"):
        train(scripts("sft"), words(workshop, tmp_path, max_steps=3))
    assert not list(tmp_path.glob("checkpoint-*")) and not (tmp_path / "model").exists()


def test_a_full_disk_is_said_where_rows_are_copied(workshop, tmp_path, scripts):
    line = words(workshop, tmp_path / "run", data_cache=tmp_path / "cache")
    with no_file_beyond(1000), pytest.raises(OSError, match="can't be copied into data_cache.*disk full"):
        train(scripts("sft"), line)


def test_merging_refuses_what_does_not_fit_and_leaves_nothing(workshop, tmp_path, scripts):
    merge = scripts("merge")
    adapter, out = tmp_path / "run" / "adapter", tmp_path / "out"
    changes = {"lora_r": 4, "max_steps": 1, "save_strategy": "no"}
    train(scripts("sft"), words(workshop, tmp_path / "run", **changes))
    line = ["--adapter", str(adapter), "--out", str(out)]
    small_checkpoint(tmp_path / "wider", hidden_size=48)
    with pytest.raises(ValueError, match="does not fit .*wider: .*Give the --base"):
        merge.main([*line, "--base", str(tmp_path / "wider")])
    with no_file_beyond(100_000), pytest.raises(OSError, match="can't be written.*disk full"):
        merge.main(line)
    settings, weights = (adapter / name for name in ("adapter_config.json", "adapter_model.safetensors"))
    tensors = load_file(weights)
    renamed = {key.replace("layers.0", "blocks.0"): tensor for key, tensor in tensors.items()}
    for damaged in (renamed, {key: tensors[key] for key in list(tensors)[::2]}):
        save_file(damaged, weights)
        with pytest.raises(ValueError, match=r"does not fit .* (has no place|is missing)"):
            merge.main(line)
    config = json.loads(settings.read_text())
    for content in ([], config | {"peft_type": "MINE"}, config | {"base_model_name_or_path": None}):
        settings.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="no configuration of PEFT's|need the name of a folder"):
            merge.main(line)
    weights.unlink()
    with pytest.raises(ValueError, match="it has no adapter_model.safetensors"):
        merge.main(line)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "wider"]


def test_a_pair_without_an_answer_is_refused(workshop, tmp_path, scripts):
    table = pq.read_table(workshop / "pairs.parquet").to_pylist()
    table[3]["rejected_ids"] = []
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match="without ids"):
        scripts("dpo").open_pairs(str(tmp_path / "pairs.parquet"), 1024, 4108, str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"lora_r": 4, "lora_vocabulary": "rows"}, "rows can't be switched off.*Allowed here: frozen, all"),
        ({"attn_implementation": "row_by_row"}, "row_by_row is for packs, and pairs are padded. Use sdpa"),
    ],
)
def test_what_preferences_can_not_have_is_refused(setting, message, workshop, tmp_path, scripts):
    script = scripts("dpo")
    with pytest.raises(ValueError, match=message):
        script.parse(script.CLASSES, words(workshop, tmp_path, pairs=workshop / "pairs.parquet", **setting))
