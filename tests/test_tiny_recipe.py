"""The scripts that make anygpt-tiny's language model: rows from code files, and a run of train/lm.py on them."""

import importlib
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from training_tools import EMBEDDED, small_checkpoint
from transformers import AutoTokenizer

from processing_anygpt.tiny_world import language, tunes

ROOT = Path(__file__).parent.parent
SPOKEN = ["the dog sees the house now", "one two three four", "draw a big red circle", "the cat wants a blue ball"]
SCENES = [
    "a big red circle",
    "a small pink star below a big blue heart",
    "a red star and a blue cross and a red heart",
]
TUNES = ["a slow happy tune on the flute going up", "a fast sad tune on the piano going down"]


def codes_files(folder: Path) -> None:
    """Miniatures of what make_speech_data.py, data_image.py and make_music_data.py write; neat and C are marked."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(60, 90, 4 * len(SPOKEN))
    voices = np.array(["flite_slt", "hibari", "espeak_en-us*1.1", "flite_slt*0.9"] * len(SPOKEN))
    for split in ("train", "heldout", "words"):
        for name in ("speech", "images", "music"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        np.savez(
            folder / f"speech/codes_{split}.npz", codes=rng.integers(0, 1024, (8, lengths.sum())),
            offsets=np.cumsum([0, *lengths]), voice=voices, text=np.array([t for t in SPOKEN for _ in range(4)]),
        )  # fmt: skip
        jittered = rng.integers(0, 500, (len(SCENES), 64))
        np.savez(
            folder / f"images/codes_{split}.npz", caption=np.array(SCENES), codes=jittered, neat=jittered * 0 + 511
        )
        played = rng.integers(0, 1000, (4, 2, 125))
        played[::2] = 1023
        np.savez(
            folder / f"music/codes_{split}.npz", caption=np.array(TUNES * 2), codes=played,
            tonic=np.array([tunes.TONICS[0], tunes.TONICS[1]] * 2),
        )  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """`make_tiny_data.py rows` on the miniatures: the folder of its files."""
    work = tmp_path_factory.mktemp("recipe")
    codes_files(work)
    shutil.copytree(EMBEDDED, work / "model", ignore=shutil.ignore_patterns("*codec*", "soundstorm", "*.safetensors"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "train")
        script = importlib.import_module("make_tiny_data")
        arguments = ["rows", "--out", work, "--speech", work / "speech", "--images", work / "images", "--music"]
        script.main([*map(str, arguments), str(work / "music")])
    return work / "rows"


def read(rows: Path, task: str) -> list[tuple[list[int], list[bool]]]:
    """[(ids, which of them are learned)] of a file of rows."""
    data = np.load(rows / f"{task}_train.npz")
    labelled = np.unpackbits(data["labelled"], count=len(data["ids"])).astype(bool)
    spans = zip(data["offsets"][:-1], data["offsets"][1:], strict=True)
    return [(data["ids"][a:b].tolist(), labelled[a:b].tolist()) for a, b in spans]


def texts(rows: Path, task: str) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    return [tokenizer.decode(ids) for ids, _ in read(rows, task)]


def test_every_recording_is_heard_and_only_plain_voices_are_spoken_with(rows):
    assert len(read(rows, "asr")) == len(read(rows, "asr_words")) == 16
    assert len(read(rows, "asr_blurred")) == 16
    assert len(read(rows, "tts")) == 16  # two plain voices, four sentences, two voice prompts each


def test_blurred_recordings_keep_their_words_and_most_of_their_codes(scripts):
    make, rng = scripts("make_tiny_data"), np.random.default_rng(0)
    speech = [(text, "hibari", rng.integers(0, 1024, 500)) for text in SPOKEN * 5]
    blurred = list(make.blurred(speech, EMBEDDED, random.Random(0)))
    assert [item[:2] for item in blurred] == [item[:2] for item in speech]
    changed = [(a != b).mean() for (*_, a), (*_, b) in zip(speech, blurred, strict=True)]
    assert max(changed) < 0.5 and 0.1 < np.mean(changed) < 0.3
    assert all(0 <= codes.min() and codes.max() < 1024 for *_, codes in blurred)


def test_pictures_are_drawn_neatly_and_described_in_one_wording(rows):
    assert all("<👀511>" in text for text in texts(rows, "draw"))
    described = texts(rows, "caption")
    assert not any("<👀511>" in text for text in described)
    # "A below B" is the picture of "B above A"
    assert any("a big blue heart above a small pink star" in text for text in described)


def test_tunes_are_played_in_c_and_heard_in_any_key(rows):
    assert len(read(rows, "play")) == 2 and all("<🎶1023>" in text for text in texts(rows, "play"))
    assert len(read(rows, "describe")) == 3  # the one that is not in C twice, and one in ten of those that are


def test_pictures_become_codes_in_a_folder_that_is_not_there_yet(scripts, tmp_path, monkeypatch):
    script = scripts("data_image")
    monkeypatch.setattr(script, "HELD_OUT", 2)
    words = [
        "codes",
        "--codec",
        str(EMBEDDED / "image_codec"),
        "--scale",
        "0.001",
        "--out",
        str(tmp_path / "new" / "images"),
    ]
    script.main(words)
    for split in ("train", "heldout"):
        data = np.load(tmp_path / "new" / "images" / f"codes_{split}.npz")
        assert data["codes"].shape == data["neat"].shape == (len(data["caption"]), 64) and len(data["caption"]) > 4
    assert all(language.is_held_out(caption) for caption in data["caption"].tolist())


def test_only_answers_are_learned(rows):
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    for task in ("asr", "tts", "caption", "draw", "describe", "play"):
        for ids, learned in read(rows, task):
            answer = tokenizer.convert_tokens_to_ids("[MMGPT]")
            assert learned.index(True) > ids.index(answer) and learned[-1] and ids[-1] == tokenizer.eos_token_id


def test_a_request_for_a_tune_names_some_of_its_attributes(scripts):
    rng, make = random.Random(0), scripts("make_tiny_data")
    asked = {make.request(TUNES[0], rng) for _ in range(400)}
    assert len(asked) == 13  # every choice of the four that training leaves open
    assert {"a tune", "a happy tune", "a slow tune on the flute going up", TUNES[0]} <= asked
    assert make.request(SCENES[0], rng) == SCENES[0]


def test_a_request_leaves_out_only_what_training_leaves_open(scripts):
    """Slow tunes on the guitar all go down in training: asked for so, a player would learn that slow guitars do."""
    rng, make = random.Random(0), scripts("make_tiny_data")
    captions = {language.sample("tune", rng) for _ in range(3000)}
    assert not any("slow" in caption and "guitar" in caption and not caption.endswith("down") for caption in captions)
    asked = {make.request(caption, rng) for caption in captions for _ in range(40)}
    assert not {"a slow tune on the guitar", "a slow sad tune on the guitar"} & asked
    assert {"a slow tune", "a tune on the guitar", "a sad tune on the guitar"} <= asked


def test_tunes_to_play_pair_their_properties_evenly(scripts):
    rng, make = random.Random(0), scripts("make_tiny_data")
    items = [(language.sample("tune", rng), np.zeros(1)) for _ in range(6000)]
    pairs = Counter(
        (t.instrument, t.contour, t.mode)
        for t in (language.parse_tune(caption) for caption, _ in make.balanced(items))
    )
    before = Counter((t.instrument, t.contour, t.mode) for t in (language.parse_tune(c) for c, _ in items))
    down = [(counts["piano", "down", "sad"], counts["piano", "down", "happy"]) for counts in (before, pairs)]
    assert down[0][0] / down[0][1] < 0.36 < down[1][0] / down[1][1]
    assert sum(pairs.values()) == len(items)


def test_what_is_told_decides_the_tune_and_not_what_is_heard(rows, scripts, monkeypatch):
    """Recording and transcript disagree; learned is the tune after the transcript alone, and its end."""
    make, chat = scripts("make_tiny_data"), scripts("chat_rows")
    monkeypatch.setattr(chat, "TOLD", 20)
    heard, played = np.arange(50) % 7, {name: [np.full((2, 125), i)] for i, name in enumerate(TUNES)}
    chat.told_play_rows(make.Rows(rows.parent), {SPOKEN[0]: [("hibari", heard)]}, played)
    marker = AutoTokenizer.from_pretrained(EMBEDDED).convert_tokens_to_ids("<-Res->")
    for (ids, learned), text in zip(read(rows, "told_play"), texts(rows, "told_play"), strict=True):
        after = ids.index(marker) + 1
        assert not any(learned[:after]) and all(learned[after:])
        tune = language.parse_tune(TUNES[int("<🎶1>" in text)])
        told = text.split("<-Ins-> ")[1].split("<-Res->")[0]
        assert any(told.startswith(f"{start} a ") for start in language.RULES["play"])
        assert (tune.mode in told) or not ({"happy", "sad"} & set(told.split()))


def test_description_is_of_the_same_scene(scripts):
    from processing_anygpt.tiny_world import pictures

    rng, make = random.Random(0), scripts("make_tiny_data")
    for caption in (language.expand("picture", rng) for _ in range(100)):
        said, shown = (language.parse_scene(c) for c in (make.description(caption), caption))
        assert said == pictures.canonical(shown)


def test_lm_learns_the_rows_and_a_stopped_run_goes_on(rows, tmp_path, scripts):
    lm = scripts("lm")
    small_checkpoint(tmp_path / "model", tied=True)
    settings = yaml.safe_load((ROOT / "train/configs/tiny_sft.yaml").read_text())
    settings |= {"model": str(tmp_path / "model"), "rows": str(rows), "mixture": {"tts_words": 0.5, "draw": 0.5}}
    settings |= {"max_steps": 6, "save_steps": 3, "eval_steps": 3, "heldout_rows": 2, "logging_steps": 1}
    settings |= {"warmup_steps": 1, "save_total_limit": 3, "compile": False}

    def run(name: str, *more: str) -> dict[str, torch.Tensor]:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings | {"output_dir": str(tmp_path / name)}, allow_unicode=True))
        lm.main([str(path), *more])
        return load_file(tmp_path / name / "model.safetensors")

    whole = run("whole")
    start = load_file(tmp_path / "model/model.safetensors")
    assert any(not torch.equal(whole[key], start[key]) for key in start)
    shutil.copytree(tmp_path / "whole/checkpoint-3", tmp_path / "parts/checkpoint-3")
    resumed = run("parts", "--resume_from_checkpoint", str(tmp_path / "parts/checkpoint-3"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_lm_refuses_a_key_that_it_does_not_know(tmp_path, scripts):
    (tmp_path / "recipe.yaml").write_text("model: m\nrows: r\nmixture: {asr: 1}\noutput_dir: o\nlerning_rate: 1\n")
    with pytest.raises(ValueError, match="lerning_rate"):
        scripts("lm").main([str(tmp_path / "recipe.yaml")])


def test_sources_are_looked_for_before_any_row_is_made(scripts, tmp_path):
    codes_files(tmp_path)
    (tmp_path / "music/codes_heldout.npz").unlink()
    words = ["rows", "--out", str(tmp_path), "--speech", str(tmp_path / "speech"), "--music", str(tmp_path / "music")]
    with pytest.raises(FileNotFoundError, match="No .*music/codes_heldout.npz"):
        scripts("make_tiny_data").main(words)
    (tmp_path / "music/codes_heldout.npz").touch()
    with pytest.raises(ValueError, match="No model in .*/model: make_tiny_data.py model"):
        scripts("make_tiny_data").main(words)
    assert not (tmp_path / "rows").exists()
