"""eval/harness.py: log-likelihood tasks on local data, before and after growing a backbone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from backbones import make_backbone, make_like

from serving_anygpt.grow import init

EVAL = Path(__file__).parent.parent / "eval"
QUESTIONS = [
    ("the dog wants the", ["tree", "tomorrow"], 0),
    ("a big red", ["circle", "happy"], 0),
    ("the cat finds <sosp> a pink", ["on", "boat"], 1),
]
TASK = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def task(tmp_path, monkeypatch) -> Path:
    """Folder with a task file on local data."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [str(EVAL), *sys.path])
    rows = [{"question": q, "choices": c, "answer": a} for q, c, a in QUESTIONS]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "local.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"), encoding="utf-8")
    return tmp_path


def test_without_the_harness_its_extra_is_named(tmp_path):
    (tmp_path / "lm_eval.py").write_text("raise ImportError('No module named lm_eval')")
    command = [sys.executable, str(EVAL / "harness.py"), "--help"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}  # before what is installed
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith("pip install -e '.[harness]'")
    assert "Traceback" not in done.stderr


@pytest.mark.slow  # the harness alone takes ten seconds to import
def test_a_grown_backbone_keeps_its_text(task, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    import harness
    from lm_eval.api.instance import Instance

    make_backbone(tmp_path / "plain", "qwen3")
    init(str(tmp_path / "plain"), str(tmp_path / "grown"), like=str(make_like(tmp_path / "like")), quiet=True)
    likelihoods, accuracies = {}, {}
    for name, folder, text_only in (("plain", "plain", False), ("grown", "grown", False), ("text", "grown", True)):
        lm = harness.AnyGPTLM(str(tmp_path / folder), text_only)
        pairs = [("the dog wants the", " tree"), ("a big red", " circle")]
        requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        likelihoods[name] = [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]
        accuracies[name] = harness.evaluate(lm, ["local_choice"], str(task))["local_choice"]["acc,none"]
        if name != "plain":
            assert lm.media.isdisjoint(lm.tok_encode("the cat <sosp> [Human] finds"))
    monkeypatch.chdir(EVAL.parent)
    shipped = harness.evaluate(lm, ["endings"], str(EVAL / "tasks"))["endings"]
    assert {"acc,none", "acc_norm,none"} <= set(shipped)
    assert likelihoods["text"] == pytest.approx(likelihoods["plain"], abs=1e-4)
    assert accuracies["text"] == accuracies["plain"]
    assert all(g < p for g, p in zip(likelihoods["grown"], likelihoods["plain"], strict=True))
