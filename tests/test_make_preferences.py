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
    words += ["--temperature", "3"]
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
    rows = [json.dumps(reply | {"ids": ids["0-0"]["ids"]}) for reply in replies]
    (tmp_path / "alike").mkdir()
    (tmp_path / "alike" / "replies.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError, match="whole and different replies"):
        script.main(["pair", "--out", str(tmp_path / "alike"), "--scores", str(tmp_path / "scores.jsonl")])
    dpo = importlib.import_module("dpo")
    read = dpo.open_pairs(str(out / "pairs.parquet"), 1024, 4108, str(tmp_path / "cache"))
    assert len(read) == 1 and set(read.column_names) == set(dpo.COLUMNS)
    assert made["chosen_ids"][-1] == 512 != made["chosen_ids"][0]  # ends as a reply does
    with pytest.raises(ValueError, match="is not empty"):
        script.main(["sample", *words, "--out", str(out)])


def test_texts_differ_where_the_checkpoint_says_the_likeliest_alone(script, prompts, checkpoint, tmp_path):
    words = ["--model", checkpoint, "--prompts", str(prompts), "--samples", "4", "--temperature", "5"]
    script.main(["sample", *words, "--max-new-tokens", "20", "--out", str(tmp_path / "texts")])
    replies = lines(tmp_path / "texts" / "replies.jsonl")
    assert len({reply["text"] for reply in replies if reply["prompt"] == 0}) > 1


def test_a_refused_sampling_leaves_nothing(script, prompts, checkpoint, tmp_path):
    words = ["--model", checkpoint, "--prompts", str(prompts), "--to", "image", "--max-new-tokens", "10"]
    with pytest.raises(ValueError, match="budget of 10 new tokens"):
        script.main(["sample", *words, "--out", str(tmp_path / "out")])
    assert not list(tmp_path.glob("*out*"))


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

    assert "scores.jsonl:1: got the id '9-9', need an id of" in refused({"9-9": 1})
    for score in ("good", None, float("nan"), float("-inf"), 10**400):
        assert "scores.jsonl:2: got the score" in refused({"0-2": 1, "0-1": score})
    assert "No pair" in refused({"0-0": 1, "0-1": 0})  # one was cut off before its end
    assert "differ by 2" in refused({"0-1": 1, "0-2": 0}, "--margin", "2")
    assert "--margin: got nan" in refused({"0-1": 1, "0-2": 0}, "--margin", "nan")
    (tmp_path / "bad.jsonl").write_text('{"text": "a dog"}\n')
    options = ["--model", checkpoint, "--out", str(tmp_path / "new"), "--to", "image"]
    for words, message in {
        "--samples 1": "--samples: got 1, need 2 or more",
        "--temperature inf": "--temperature: got inf, allowed are 0.01 to 100",
        "--temperature 1e-30": "--temperature: got 1e-30",
        "--max-new-tokens 0": "--max-new-tokens: got 0, allowed are 1 and more",
    }.items():
        with pytest.raises(ValueError, match=message):
            script.main(["sample", *options, "--prompts", str(tmp_path / "bad.jsonl"), *words.split()])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "line, message",
    [
        ({"picture": 1}, "got picture, need messages, or text"),
        ({"messages": 5}, "Got messages of type int"),
        ({"messages": [5]}, "Got messages of type list"),
        ({"messages": []}, "without messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "path": "gone.png"}]}]}, "No file"),
        (
            {"messages": [{"role": "user", "content": [{"type": "speech", "audio": [0.1], "sampling_rate": "x"}]}]},
            "sampling rate of 'x'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_prompt_is_named_before_anything_is_made(script, prompts, tmp_path, checkpoint, line, message):
    with open(prompts, "a") as file:
        file.write(json.dumps(line) + "\n")
    with pytest.raises(ValueError) as error:
        script.main(["sample", "--model", checkpoint, "--out", str(tmp_path / "new"), "--prompts", str(prompts)])
    assert str(error.value).startswith(f"{prompts}:3: ") and message in str(error.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "file, more, message",
    [
        ("scores", '{"id": "0-1", "score": 0}', r"scores.jsonl:3: a second score of '0-1'"),
        ("scores", '{"id": ["0-1"], "score": 0}', r"scores.jsonl:3: got the id \['0-1'\]"),
        ("scores", "[" * 100_000, r"scores.jsonl:3 is no JSON"),
        ("scores", "[]", r"scores.jsonl:3: got JSON of type list"),
        ("replies", '{"id": "0-1", "prompt": 0, "prompt_ids": [1], "ids": [2]}', "replies.jsonl:3: the id '0-1' is"),
        ("replies", '{"id": "0-2", "prompt_ids": [1], "ids": [2]}', "replies.jsonl:3: got none for 'prompt'"),
        ("replies", '{"id": "0-2", "prompt": [0], "prompt_ids": [1], "ids": [2]}', r"got \[0\] for 'prompt'"),
    ],
)
def test_a_reply_is_scored_once_and_no_line_is_left_out(script, tmp_path, file, more, message):
    rows = [{"id": f"0-{i}", "prompt": 0, "prompt_ids": [1], "ids": [2 + i, 512], "text": "a\u2028b"} for i in (0, 1)]
    path = tmp_path / "replies.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    words = ["pair", "--out", str(tmp_path), "--scores", str(write(tmp_path / "scores.jsonl", {"0-0": 1, "0-1": 2}))]
    script.main(words)
    (made,) = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert made["chosen_ids"] == [3, 512]
    (tmp_path / "pairs.parquet").unlink()
    with open(tmp_path / f"{file}.jsonl", "a") as lines:
        lines.write(more + "\n")
    with pytest.raises(ValueError, match=message):
        script.main(words)
    assert not (tmp_path / "pairs.parquet").exists()
