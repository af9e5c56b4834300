"""Pairs that train/dpo.py refuses, rows that trainers refuse, and how benchmarks/training.py tells of failures."""

import importlib
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

pytest.importorskip("trl")
from training_tools import EMBEDDED, random_rows

ROOT = Path(__file__).parent.parent
PAIR = {"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9], "rejected_ids": [10, 11]}


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "train")
    return importlib.import_module


def write(path: Path, pairs: list[dict], kind: pa.DataType | None = None) -> Path:
    schema = None if kind is None else pa.schema([(name, kind) for name in PAIR])
    pq.write_table(pa.Table.from_pylist(pairs, schema), path)
    return path


def open_pairs(scripts, path: Path):
    return scripts("dpo").open_pairs(str(path), 8, 100, str(path.parent / "cache"))


@pytest.mark.parametrize(
    "pairs, message",
    [
        ([PAIR, PAIR | {"chosen_ids": [-3, 9]}], "chosen_ids of .* has ids in -3..9, allowed are 0..99"),
        ([PAIR, PAIR | {"prompt_ids": [100]}], "prompt_ids of .* has ids in 5..100, allowed are 0..99"),
        ([dict.fromkeys(PAIR, ["a"])], "prompt_ids of .* is of type list<.*string>, need lists of integers"),
        ([dict.fromkeys(PAIR, [1.5])], "is of type list<.*double>, need lists of integers"),
        ([dict.fromkeys(PAIR, 5)], "is of type int64, need lists of integers"),
        ([PAIR, PAIR | {"rejected_ids": [None, 3]}], "without ids, or an empty id"),
        ([PAIR, PAIR | {"rejected_ids": None}], "without ids, or an empty id"),
        ([PAIR, PAIR | {"rejected_ids": []}], "without ids, or an empty id"),
        ([{"prompt_ids": [1], "chosen_ids": [2]}], "has no column 'rejected_ids'"),
        ([PAIR | {"prompt_ids": [1] * 7}], "none of the 1 pairs .* fits into max_length 8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pairs_that_can_t_be_learned_from(scripts, tmp_path, pairs, message):
    with pytest.raises(ValueError, match=message):
        open_pairs(scripts, write(tmp_path / "pairs.parquet", pairs))


def test_files_without_a_pair(scripts, tmp_path):
    ids = pa.list_(pa.int64())
    write(tmp_path / "a.parquet", [], ids)
    with pytest.raises(ValueError, match="holds no pairs. Give one or more"):
        open_pairs(scripts, tmp_path)
    write(tmp_path / "b.parquet", [PAIR, PAIR | {"prompt_ids": [1] * 7}], ids)
    assert open_pairs(scripts, tmp_path).to_list() == [PAIR]
    (tmp_path / "c.parquet").write_bytes(b"junk")
    with pytest.raises(ValueError, match="c.parquet is no whole parquet file"):
        open_pairs(scripts, tmp_path)


@pytest.mark.parametrize("beta", ["nan", "inf", "0", "-0.1"])
def test_beta_is_a_number_above_0(scripts, tmp_path, beta):
    dpo = scripts("dpo")
    words = [f"--model={EMBEDDED}", "--pairs=x", f"--output_dir={tmp_path}", "--use_cpu=true", "--max_steps=1"]
    with pytest.raises(ValueError, match="beta: got .*, allowed: a number above 0"):
        dpo.parse(dpo.CLASSES, [*words, f"--beta={beta}"], "")


@pytest.mark.parametrize("tasks", [[], None, [1, "b"], [[1]], "text->speech"], ids=str)
def test_tasks_of_a_source_are_a_list_of_names(scripts, tmp_path, tasks):
    folder = random_rows(tmp_path / "rows", "speech", 3, (5, 9))
    token_rows, tokenizer = scripts("token_rows"), AutoTokenizer.from_pretrained(EMBEDDED)
    with pytest.raises(ValueError, match="Source 'a': got tasks .*, need a list of one or more of text->speech"):
        token_rows.open_rows("a", {"rows": str(folder), "tasks": tasks}, tokenizer, str(tmp_path / "cache"))


def test_a_shard_of_no_bytes_is_named(scripts, tmp_path):
    folder = random_rows(tmp_path / "rows", "speech", 3, (5, 9))
    (folder / "part-000001.parquet").write_bytes(b"")
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    with pytest.raises(ValueError, match="part-000001.parquet is no whole parquet file .* delete it"):
        scripts("token_rows").open_rows("a", {"rows": str(folder)}, tokenizer, str(tmp_path / "cache"))


@pytest.mark.parametrize("words", ["--steps 3", "--steps 6", "--warm-up 0", "--steps 4 --warm-up 3"])
def test_a_benchmark_needs_steps_to_time(scripts, monkeypatch, words):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    with pytest.raises(ValueError, match="allowed are 1 to warm up and 2 more"):
        scripts("training").main(["packing", *words.split()])


def test_a_benchmark_that_fails_ends_with_1(scripts, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    training = scripts("training")
    ended = [(0, 'RESULT {"a": 1}', ""), (1, "", "Traceback\nOSError: no room")]

    def run(command, **options):
        return subprocess.CompletedProcess(command, *ended.pop(0))

    monkeypatch.setattr(training.subprocess, "run", run)
    with pytest.raises(SystemExit) as stop:
        training.main(["lora", "--size", "toy"])
    out, err = capsys.readouterr()
    assert stop.value.code == 1 and '"a": 1' in out and "--run ours: failed: OSError: no room" in err
