"""train/make_preferences.py: replies are whole and repeatable, the best and the worst of each prompt become a pair."""

import importlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

pytest.importorskip("trl")

TRAIN = Path(__file__).parent.parent / "train"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(TRAIN)
    return importlib.import_module("make_preferences")


@pytest.fixture
def prompts(tmp_path) -> Path:
    path = tmp_path / "prompts.jsonl"
    messages = [{"role": "user", "content": "draw a small blue star"}]
    path.write_text(json.dumps({"text": "draw a big red circle"}) + "\n" + json.dumps({"messages": messages}) + "\n")
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, scores: dict) -> Path:
    path.write_text("".join(json.dumps({"id": name, "score": score}) + "\n" for name, score in scores.items()))
    return path


def test_pictures_become_pairs_that_dpo_reads(script, prompts, checkpoint, tmp_path):
    out = tmp_path / "pairs"
    words = ["--model", checkpoint, "--prompts", str(prompts), "--to", "image", "--samples", "3"]
    script.main(["sample", *words, "--out", str(out)])
    replies = lines(out / "replies.jsonl")
    assert [reply["id"] for reply in replies] == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"]
    assert all(Image.open(out / reply["path"]).size == (64, 64) for reply in replies)
    scores = {"0-0": 0.5, "0-1": 0.9, "0-2": 0.1, "1-0": 1, "1-1": 1}
    script.main(["pair", "--out", str(out), "--scores", str(write(tmp_path / "scores.jsonl", scores))])
    (made,) = pq.read_table(out / "pairs.parquet").to_pylist()  # of the other prompt both are as good
    ids = {reply["id"]: reply for reply in replies}
    assert made["chosen_ids"] == ids["0-1"]["ids"] and made["rejected_ids"] == ids["0-2"]["ids"]
    assert made["prompt_ids"] == ids["0-0"]["prompt_ids"]
    dpo = importlib.import_module("dpo")
    read = dpo.open_pairs(str(out / "pairs.parquet"), 1024, 4108, str(tmp_path / "cache"))
    assert len(read) == 1 and set(read.column_names) == set(dpo.COLUMNS)
    assert made["chosen_ids"][-1] == 512 != made["chosen_ids"][0]  # ends as a reply does
    with pytest.raises(ValueError, match="is not empty"):
        script.main(["sample", *words, "--out", str(out)])


def test_what_is_wrong_is_said(script, tmp_path, checkpoint):
    out = tmp_path / "pairs"
    out.mkdir()
    rows = [{"id": f"0-{i}", "prompt": 0, "prompt_ids": [1], "ids": [2, 512] if i else None} for i in range(3)]
    (out / "replies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def refused(scores: dict, *more: str) -> str:
        path = write(tmp_path / "scores.jsonl", scores)
        with pytest.raises(ValueError) as error:
            script.main(["pair", "--out", str(out), "--scores", str(path), *more])
        assert not (out / "pairs.parquet").exists()
        return str(error.value)

    assert "need an id of" in refused({"9-9": 1})
    assert "and a score" in refused({"0-1": "good"})
    assert "No pair" in refused({"0-0": 1, "0-1": 0})  # one was cut off before its end
    assert "differ by 2" in refused({"0-1": 1, "0-2": 0}, "--margin", "2")
    (tmp_path / "bad.jsonl").write_text('{"picture": 1}\n')
    options = ["--model", checkpoint, "--out", str(tmp_path / "new"), "--to", "image"]
    with pytest.raises(ValueError, match="got a line with picture, need messages, or text"):
        script.main(["sample", *options, "--prompts", str(tmp_path / "bad.jsonl")])
    with pytest.raises(ValueError, match="need 2 or more"):
        script.main(["sample", *options, "--prompts", str(tmp_path / "bad.jsonl"), "--samples", "1"])
    assert not (tmp_path / "new").exists()
