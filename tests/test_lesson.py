"""The lesson for anygpt-tiny: its world, its data in miniature, and an examination that can be failed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from training_tools import small_checkpoint
from transformers import AutoModelForCausalLM

from processing_anygpt.instructions import load_instructions
from processing_anygpt.preparation import load_checkpoint
from processing_anygpt.rows import read_table
from processing_anygpt.tiny_world import language, lesson, pictures, tunes, voices

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT / "train"), str(ROOT / "eval")]  # siblings of the scripts import each other by name

SCALE = 0.02  # of the lesson: a few items of each kind
NEW = ("word", "voice", "object", "instrument")
OLD = ("old_speech", "old_pictures", "old_tunes", "old_asked")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_lesson(tmp_path_factory.mktemp("lesson"))


def small_lesson(folder: Path) -> Path:
    """The files of a small lesson. Voices hum and instruments beep: what they sound like is not tested here."""
    import make_lesson

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voices, "say", lambda text, *_: np.sin(np.arange(700 * len(text)) / 20).astype(np.float32) / 2)
        # The pitch of the first note, for the test to read.
        patch.setattr(tunes, "render", lambda notes, *_: np.full(4000, notes[0][2] / 128, np.float32))
        with lesson.enlarged():
            make_lesson.make(folder, "", SCALE, seed=0)
    return folder


def conversations(data: Path, name: str) -> list[tuple[list, list]]:
    """What the user says and what is answered, as lists of blocks."""
    lines = (data / f"{name}.jsonl").read_text().splitlines()
    return [tuple(message["content"] for message in json.loads(line)["messages"]) for line in lines]


def words_of(blocks: list) -> str:
    return " ".join(block["text"] for block in blocks if block["type"] == "text")


def examination(data: Path) -> list[dict]:
    return [json.loads(line) for line in (data / "heldout.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- the enlarged world


def test_the_world_grows_and_shrinks_again():
    caption = "a big red oval left of a small pink star"
    with pytest.raises(ValueError, match="Not a picture caption"):
        language.parse_scene(caption)
    with lesson.enlarged():
        scene = language.parse_scene(caption)
        picture = pictures.draw(scene, None)
        assert pictures.matches(picture, scene)
        assert not pictures.matches(picture, language.parse_scene(caption.replace("oval", "circle")))
        assert language.parse_tune("a slow sad tune on the organ going up").instrument in tunes.INSTRUMENTS
    assert not pictures.matches(picture, scene)  # the judge of the world itself knows no ovals
    assert "organ" not in tunes.INSTRUMENTS and "monkey" not in language.vocabulary()


def test_an_error_inside_leaves_the_world_as_it_was():
    before = {rule: list(words) for rule, words in language.RULES.items()}
    with pytest.raises(RuntimeError), lesson.enlarged():
        raise RuntimeError
    assert language.RULES == before


# ---------------------------------------------------------------- its data


def test_every_medium_is_there(data):
    named = [b["path"] for n in NEW + OLD for c in conversations(data, n)
             for blocks in c for b in blocks if "path" in b]  # fmt: skip
    named += [row[key] for row in examination(data) for key in ("speech", "image", "music", "voice") if key in row]
    assert named and all((data / path).is_file() for path in named)


@pytest.mark.parametrize("name, word", [("word", "monkey"), ("object", "oval"), ("instrument", "organ")])
def test_every_conversation_of_a_part_is_about_it_and_in_both_directions(data, name, word):
    turns = conversations(data, name)
    assert all(word in words_of(user + reply).split() for user, reply in turns)
    assert len({reply[-1]["type"] for _, reply in turns}) == 2


def test_the_old_world_lacks_what_is_new(data):
    said = [words_of(user + reply) for name in (*OLD, "voice") for user, reply in conversations(data, name)]
    assert said and not any(lesson.is_new(text) for text in said)


def test_nothing_examined_is_taught(data):
    asked = {language.core(row["text"]) for row in examination(data)}
    openings = [i.removesuffix("{text}") for texts in language.INSTRUCTIONS.values() for i in texts if "{text}" in i]
    taught = set()
    for name in NEW + OLD:
        for user, reply in conversations(data, name):
            said = [words_of(reply), words_of(user), *(language.core(b.get("transcript", "")) for b in user)]
            taught |= {text.removeprefix(opening) for text in said for opening in openings}
    assert all(lesson.is_held_out(text) for text in asked)
    assert len(taught) > 50 and not asked & taught


def test_nothing_is_asked_twice():
    import make_lesson

    draws = iter("abacbad")
    assert make_lesson.different(lambda: next(draws), 4) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("scale", ["0", "1.5", "nan"])
def test_a_scale_that_can_not_be_is_refused(scale, tmp_path):
    import make_lesson

    with pytest.raises(ValueError, match="allowed: above 0, at most 1"):
        make_lesson.main(["--out", str(tmp_path / "out"), "--scale", scale])
    assert not (tmp_path / "out").exists()


def test_what_is_not_installed_is_missed_before_anything_is_made(tmp_path, monkeypatch):
    import make_lesson

    words = ["--out", str(tmp_path / "out"), "--sound-font", "none.sf2"]
    monkeypatch.setitem(sys.modules, "tinysoundfont", None)
    tunes._synth.cache_clear()
    with pytest.raises(ImportError, match="pip install tinysoundfont"):
        make_lesson.main(words)
    monkeypatch.setattr(make_lesson, "check_sound_font", lambda path: None)
    monkeypatch.setattr(voices, "is_installed", lambda voice: voice != lesson.VOICE)
    with pytest.raises(ValueError, match=f"The voice {lesson.VOICE} is not installed"):
        make_lesson.main(words)
    assert not (tmp_path / "out").exists()


def test_one_part_grows_and_the_others_stay(data, tmp_path, monkeypatch):
    import make_lesson

    taught, examined = make_lesson.COUNTS["voice"]
    monkeypatch.setitem(make_lesson.COUNTS, "voice", (2 * taught, examined))
    small_lesson(tmp_path)

    def said(folder, name):
        return [words_of(user + reply) for user, reply in conversations(folder, name)]

    assert len(said(tmp_path, "voice")) > 1.5 * len(said(data, "voice"))
    assert all(said(data, name) == said(tmp_path, name) for name in ("word", "object", *OLD))
    assert [row["text"] for row in examination(data)] == [row["text"] for row in examination(tmp_path)]


def test_what_is_made_does_not_vary_and_what_is_met_does(data):
    with lesson.enlarged():
        for user, reply in conversations(data, "object"):
            made = reply[-1]["type"] == "image" or words_of(user) == language.READ_BACK
            words = words_of(user if reply[-1]["type"] == "image" else reply)
            path = (reply if reply[-1]["type"] == "image" else user)[-1]["path"]
            neat = pictures.draw(language.parse_scene(words[words.index("a ") :]), None)
            same = not ImageChops.difference(Image.open(data / path), neat).getbbox()
            assert same == made


def test_what_is_made_is_read_back(data):
    """Media that are made come back, some of them, with the very words that they were asked for with."""
    for name in NEW:
        rows = conversations(data, name)
        asked = {reply[-1]["path"]: words_of(user) for user, reply in rows if reply[-1]["type"] != "text"}
        told = {user[-1]["path"]: words_of(reply) for user, reply in rows if words_of(user) == language.READ_BACK}
        assert told and told.items() < asked.items()


def test_tunes_to_play_are_in_c(data):
    import soundfile

    played = [reply[-1]["path"] for _, reply in conversations(data, "instrument") if reply[-1]["type"] == "music"]
    pitches = [round(float(soundfile.read(data / path)[0][0]) * 128) for path in played]
    assert pitches and all(pitch % 12 == 0 for pitch in pitches)


def test_the_new_voice_always_follows_a_prompt(data):
    spoken = [user for user, reply in conversations(data, "voice") if reply[-1]["type"] == "speech"]
    assert spoken and all(user[0]["type"] == "speech" for user in spoken)


def test_examination_has_all_kinds(data):
    kinds = {(row["task"], row["group"]) for row in examination(data)}
    assert kinds == {
        *((task, group) for task in ("asr", "tts") for group in ("word", "voice", "old")),
        *((task, group) for task in ("image_captioning", "text_to_image") for group in ("object", "old")),
        *((task, group) for task in ("music_captioning", "text_to_music") for group in ("instrument", "old")),
        ("speech_chat", "old"),
    }


def test_examples_are_had_as_files(data, tmp_path):
    """As those of a user: a text beside each, without the words that ask for it."""
    import lesson_files

    lesson_files.main([str(data), "--out", str(tmp_path / "my"), "--share", "0.01"])
    files = sorted(path.name for path in (tmp_path / "my").iterdir())
    assert files[:4] == ["instrument_0000.music.flac", "instrument_0000.txt", "instrument_0001.music.flac",
                         "instrument_0001.txt"]  # fmt: skip
    assert len(files) == 2 * (3 + 6 + 2)
    assert lesson.SHAPE in (tmp_path / "my" / "object_0000.txt").read_text()
    assert (tmp_path / "my" / "instrument_0000.txt").read_text().startswith("a ")
    with pytest.raises(ValueError, match="exists already"):
        lesson_files.main([str(data), "--out", str(tmp_path / "my")])
    with pytest.raises(ValueError, match="No file .*voice.jsonl. Make it with train/make_lesson.py"):
        lesson_files.main([str(tmp_path), "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def test_a_part_becomes_rows(data, tmp_path):
    import prepare_data

    part = data / "two.jsonl"  # the first scene: to describe and to draw
    part.write_text("".join((data / "object.jsonl").read_text().splitlines(keepends=True)[:2]))
    assert prepare_data.main([str(part), "--out", str(tmp_path / "rows"), "--workers", "0", "--json"]) == 0
    table = read_table(tmp_path / "rows").to_pylist()
    turns = conversations(data, "two")
    assert len(table) == len(turns) == 2
    config, processor = load_checkpoint(prepare_data.TINY)
    for row, (_, reply) in zip(table, turns, strict=True):
        learned = [i for i in row["labels"] if i != -100]
        if reply[-1]["type"] == "image":
            assert config.modality("image").start_token_id in learned and len(learned) > 64
        else:
            assert words_of(reply) in processor.tokenizer.decode(learned)


# ---------------------------------------------------------------- the examination


@pytest.fixture
def examine():
    pytest.importorskip("librosa", reason="the judges are not installed: pip install -e .[eval]")
    import lesson as script  # eval/lesson.py

    return script


def judged(script, task: str, group: str, text: str, output, **parts) -> dict:
    panel = script.Panel.__new__(script.Panel)  # without voices and instruments, which take recordings to learn
    vars(panel).update(parts)
    example = script.Example("0", (text,), group, speaker=lesson.VOICE)
    with lesson.enlarged():
        return {line: right / of for line, right, of, _ in panel.lines(task, group, example, output)}


def test_a_limit_is_a_limit(examine, tmp_path):
    row = {"task": "asr", "group": "old", "text": "the dog", "speech": "a.wav"}
    (tmp_path / "heldout.jsonl").write_text((json.dumps(row) + "\n") * 19)
    assert [len(examine.read_items(tmp_path, n)["asr", "old"]) for n in (1, 10, 18, None)] == [1, 10, 18, 19]
    with pytest.raises(ValueError, match="Got --limit 0"):
        examine.read_items(tmp_path, 0)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "heldout.jsonl is empty"),
        ('{"task": "asr"', "heldout.jsonl:1 is no JSON"),
        ('{"task": "asr", "text": "a"}', "heldout.jsonl:1 needs task, group, text"),
        ('{"task": "asr", "group": "old", "text": "a"}', "heldout.jsonl:1 has no speech, image or music"),
    ],
)
def test_spoiled_items_are_said_in_one_line(examine, text, message, tmp_path):
    (tmp_path / "heldout.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"{message}.*train/make_lesson.py"):
        examine.read_items(tmp_path, None)


def test_a_missing_adapter_is_missed_before_the_examination(examine, data, tmp_path):
    words = ["--data", str(data), "--after", str(examine.TINY), "--adapter", str(tmp_path)]
    with pytest.raises(ValueError, match="is no adapter: it has no adapter_config.json"):
        examine.main([*words, "--out", str(tmp_path / "out.json")])


def test_silence_has_no_voice(examine):
    assert examine.judge_speech.nearest_voice(np.zeros(16_000, np.float32), {"a": np.ones(256)}) is None


def test_words_are_judged(examine):
    def score(text):
        return judged(examine, "asr", "word", "the monkey likes the tree", examine.systems.Output(text))

    assert set(score("the monkey likes the tree").values()) == {1.0}
    assert score("the dog likes the tree") == {"new word written": 0.0, "new word: all words written": 0.8}
    assert set(score("").values()) == {0.0}


def test_pictures_are_judged(examine):
    def score(shape):
        with lesson.enlarged():
            picture = pictures.draw(language.parse_scene(f"a big red {shape}"), None)
        output = examine.systems.Output(medium=picture)
        return judged(examine, "text_to_image", "object", "a big red oval", output)

    assert score("oval") == {"new object drawn": 1.0}
    assert score("circle") == {"new object drawn": 0.0}


def test_instruments_are_judged(examine):
    output = examine.systems.Output(medium=(np.zeros(80, np.float32), 16_000))
    wanted = "a slow sad tune on the organ going up"
    for heard, right in (("organ", 1.0), ("piano", 0.0)):
        found = judged(examine, "text_to_music", "instrument", wanted, output, instrument=lambda *_, h=heard: h)
        assert found == {"new instrument played": right}


def test_candidates_are_for_media_and_words_are_written_once(examine, tmp_path):
    path = tmp_path / "circle.png"
    pictures.draw(language.parse_scene("a big red circle"), None).save(path)
    system = examine.systems.Model("tiny", str(examine.TINY), torch.device("cpu"), candidates=2)
    example = examine.Example("0", ("a big red circle",), "old", str(path))
    for task in ("image_captioning", "text_to_image"):
        wanted = examine.protocol.read(examine.protocol.FOLDER / "tiny" / f"{task}.yaml")
        (answer,) = system.answer(wanted, [example], seed=0)
        assert answer.text == "a big red circle" if task == "image_captioning" else answer.medium.size == (64, 64)


def test_a_loss_of_an_old_task_shows(examine, capsys):
    def scores(old, new):
        found = {"old: pictures drawn": examine.Score(), "new object drawn": examine.Score()}
        for score, right in zip(found.values(), (old, new), strict=True):
            for number in range(10):
                score.add(float(number < right), 1, {})
        return found

    codecs = {"new object drawn": examine.Score(9, 10)}
    report = examine.table(scores(9, 0), scores(8, 10), codecs)
    assert report["largest_loss"] == 10.0
    printed = capsys.readouterr().out
    assert "| old: pictures drawn | 90.0 | 80.0 | -10.0 +- 10.0 |  | 10 |" in printed  # one of ten items
    assert "| new object drawn | 0.0 | 100.0 | +100.0 +- 0.0 | 90.0 | 10 |" in printed
    assert examine.table(scores(8, 10), scores(9, 0), codecs)["largest_loss"] == 0.0  # is no old task


def test_the_merged_model_is_compared_with_the_adapter(examine, tmp_path):
    import merge
    from peft import LoraConfig, get_peft_model

    base = small_checkpoint(tmp_path / "base")
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    merge.merge(str(base), tmp_path / "adapter", tmp_path / "merged", "float32")
    items = {("text_to_image", "old"): [examine.Example("0", ("a big red circle",))]}
    words = str(base), str(tmp_path / "adapter")
    assert examine.logit_difference(*words, str(tmp_path / "merged"), items) < examine.SAME
    assert examine.logit_difference(*words, str(base), items) > examine.SAME


def test_instructions_for_own_files_are_those_of_the_world():
    own = load_instructions(("image", "speech", "music"), ROOT / "train/configs/tiny_instructions.yaml")
    assert own == {f"{source}->{target}": texts for (source, target), texts in language.INSTRUCTIONS.items()}
