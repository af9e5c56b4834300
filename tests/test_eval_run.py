"""eval/run.py and eval/report.py in miniature: held-out scenes, the embedded checkpoint, cheap judges."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from processing_anygpt.tiny_world import language, pictures

EVAL = Path(__file__).parent.parent / "eval"
sys.path.insert(0, str(EVAL))  # siblings of the scripts import each other by name

import judges  # noqa: E402
import protocol  # noqa: E402
import report  # noqa: E402
import results  # noqa: E402
import run  # noqa: E402
import systems  # noqa: E402
import tables  # noqa: E402
import tiny_examples  # noqa: E402

import examples  # noqa: E402

ALL = sorted(protocol.FOLDER.glob("*/*.yaml"))
COUNT = 3  # scenes


@pytest.fixture(scope="module")
def protocols(tmp_path_factory) -> Path:
    """The tiny world's protocols of pictures, with few items."""
    folder = tmp_path_factory.mktemp("mini")
    for task in ("image_captioning", "text_to_image"):
        content = yaml.safe_load((protocol.FOLDER / "tiny" / f"{task}.yaml").read_text())
        content["data"]["options"]["count"] = COUNT
        content["decoding"] |= {"batch": 2, "max_new_tokens": 80}
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(content))
    return folder


def evaluate(protocols: Path, out: Path, *models: str, more: tuple = ()) -> dict:
    """Runs all of `protocols`; the result files as `tables.load` gives them."""
    words = ["--task", "all", "--protocols", str(protocols), "--data", str(out), "--out", str(out), "--cpu"]
    run.main([*words, *more, "--model", *models])
    return tables.load([out])


@pytest.fixture(scope="module")
def evaluated(protocols, tmp_path_factory, request):
    """Folder and results of the model, its codec, the originals and the broken models."""
    checkpoint = request.config.getoption("--checkpoint")
    out = tmp_path_factory.mktemp("out")
    broken = ("shuffled=broken:shuffled:" + checkpoint, "broken:constant", "broken:silence")
    return out, evaluate(protocols, out, f"tiny={checkpoint}", f"codec:{checkpoint}", "original", *broken)


def numbers(found: dict) -> dict:
    """What must not depend on when and how a run was made."""
    return {
        (system, name): (result["rows"], result["items"], result["key"])
        for system, by_protocol in found.items()
        for name, result in by_protocol.items()
    }


# ---------------------------------------------------------------- protocols


@pytest.mark.parametrize("path", ALL, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_protocols_say_what_is_measured(path):
    content = protocol.read(path)
    assert content.name == f"{path.parent.name}/{path.stem}" and content.rows and content.data["version"]
    if path.parent.name == "paper":
        assert content.known and content.unknown and content.choice
    for block in content.prompt:
        assert isinstance(block, str) or {"given", "voice"} & set(block.values())


def test_the_hash_is_of_the_content_not_of_the_layout(tmp_path):
    text = ALL[0].read_text()
    first, second, third = (tmp_path / name / ALL[0].name for name in "abc")
    for path, content in (
        (first, text),
        (second, f"# a comment\n{text}"),
        (third, text.replace("max_new_tokens", "min_new_tokens")),
    ):
        path.parent.mkdir()
        path.write_text(content)
    hashes = [protocol.read(path).hash for path in (first, second, third)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"promt": []}, "unknown keys.*promt"),
        ({"task": "asl"}, "unknown task 'asl'. Known: asr"),
        ({"rows": [{"name": "x"}]}, "row 1.*metric"),
        ({"rows": [{"name": "x", "metric": "wer"}] * 2}, "two rows are called 'x'"),
        ({"rows": [{"name": "x", "metric": "wre"}]}, "row 'x': metric is 'wre'. Known: mean, bleu, .*wer"),
        ({"rows": [{"name": "x", "metric": "wer", "better": "less"}]}, "better is 'less'. Known: higher, lower"),
        ({"rows": ["wer"]}, "row 1: got 'wer', need keys"),
    ],
)
def test_a_wrong_protocol_is_refused(change, message, tmp_path):
    content = yaml.safe_load((protocol.FOLDER / "tiny" / "asr.yaml").read_text()) | change
    (tmp_path / "asr.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message):
        protocol.read(tmp_path / "asr.yaml")


@pytest.mark.parametrize("text, message", [("", "holds no keys. Known: .*task"), ("a: [", "is no valid YAML")])
def test_what_is_no_protocol_is_refused(text, message, tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no protocols"):
        protocol.choose("all", str(tmp_path))
    (tmp_path / "asr.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        protocol.choose("all", str(tmp_path))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"source": "tiny_secnes"}, "unknown data source 'tiny_secnes'"),
        ({"options": {"cuont": 3}}, "options of tiny_scenes: .*'cuont'. Known: count, show"),
        ({"source": "coco", "options": {"spilt": "val"}}, "options of coco: .*'spilt'. Known: split"),
    ],
)
def test_wrong_data_of_a_protocol_are_refused(change, message, protocols, tmp_path):
    wanted = protocol.read(protocols / "image_captioning.yaml")
    with pytest.raises(ValueError, match=message):
        examples.load(replace(wanted, data=wanted.data | change), tmp_path)
    with pytest.raises(ValueError, match="Judge dnsmos: .*'grammar'"):
        judges.build({"judge": "dnsmos", "grammar": "open"}, tmp_path, None)
    with pytest.raises(ValueError, match="got a sample of {'count': 1}. Give its count and seed"):
        examples.sample([1, 2], {"count": 1}, "p")


def test_a_voice_without_a_second_recording_is_no_prompt():
    """The recording itself would be: the model would be given the right answer."""
    items = [SimpleNamespace(id=i, texts=("x",), media=f"{i}.wav", speaker=i[0]) for i in ("a1", "a2", "b1")]
    assert [example.voice for example in examples.as_examples("tts", items[:2], items)] == ["a2.wav", "a1.wav"]
    with pytest.raises(ValueError, match="The speaker of b1 has no other recording"):
        examples.as_examples("tts", items, items)


def test_a_damaged_sound_is_said_in_one_line(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF no more")
    for medium in (str(tmp_path / "a.wav"), str(tmp_path / "gone.wav"), b"RIFF no more"):
        with pytest.raises(ValueError, match="Can't read .* as audio: "):
            examples.sound(medium)


# ---------------------------------------------------------------- runs


def test_result_files_hold_what_a_number_rests_on(evaluated, checkpoint):
    out, found = evaluated
    result = next(iter(found["tiny"].values()))
    assert len(result["system"]["fingerprint"]) == 64 and result["system"]["parameters"] > 1e6
    assert len(result["protocol"]["hash"]) == 64 and result["protocol"]["file"]["task"] == result["task"]
    assert {"torch", "transformers", "evaluation code"} <= set(result["versions"]) and result["seed"] == 0
    assert [len(r["items"]) for by in found.values() for r in by.values()] == [COUNT] * sum(map(len, found.values()))
    for by_protocol in found.values():
        for each in by_protocol.values():
            for item in each["items"]:
                assert item["texts"] and (item["medium"] is None or (each["folder"] / item["medium"]).is_file())
            for row in each["rows"]:
                assert row["low"] <= row["value"] <= row["high"] and len(row["items"]) == row["count"] == COUNT


def test_originals_are_right_and_broken_models_at_the_floor(evaluated):
    _, found = evaluated
    (drawn,) = found["original"].values()  # captions have no original to be right
    assert drawn["task"] == "text_to_image" and drawn["rows"][0]["value"] == 1.0
    for name in tables.of_kind(found, "broken"):
        assert len(found[name]) == 2
        for result in found[name].values():
            assert all(tables.at_floor(row) for row in result["rows"]), (name, result["rows"])


def test_originals_answer_spoken_requests_in_the_medium_asked_for(tmp_path, monkeypatch):
    """What was asked for, drawn, played or spoken, is the ceiling of what a model can be judged to have done."""
    asked = ["draw a big red circle", "play a slow sad tune on the flute going up", "say one two three"]
    sounds = np.split(np.zeros(30, np.float32), 3)
    speech = SimpleNamespace(text=asked, voice=["flite_slt"] * 3, wave=sounds, of=lambda *names: range(3))
    speech.sound = lambda i: (speech.wave[i], 16_000)
    monkeypatch.setattr(tiny_examples, "Recordings", lambda stem: speech)
    monkeypatch.setattr(tiny_examples, "sound_font", lambda folder: "font")
    monkeypatch.setattr(tiny_examples.tunes, "render", lambda notes, *where: np.full(8, notes[0][2], np.float32))
    monkeypatch.setattr(tiny_examples.voices, "say", lambda text, *how: np.full(8, len(text), np.float32))
    chat = protocol.read(protocol.FOLDER / "tiny" / "speech_chat.yaml")
    found = examples.load(chat, tmp_path)
    original = systems.Reference("original")
    assert original.handles(chat, found)
    picture, tune, saying = (original.answer(chat, [example], seed=0)[0].medium for example in found)
    assert pictures.matches(picture, language.parse_scene("a big red circle"))
    assert tune[1] == 16_000 and tune[0][0] in tiny_examples.tunes.TONICS  # a melody going up starts on its tonic
    assert saying[0][0] == len("one two three")
    assert not original.handles(chat, [replace(found[0], reference=None), *found[1:]])


def test_same_seed_same_numbers_also_after_a_kill(evaluated, protocols, checkpoint, tmp_path, monkeypatch):
    _, found = evaluated
    asked = []
    answer = systems.Model.answer

    def dying(self, wanted, batch, seed):
        asked.append((wanted.task, [example.id for example in batch]))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answer(self, wanted, batch, seed)

    monkeypatch.setattr(systems.Model, "answer", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate(protocols, tmp_path, f"tiny={checkpoint}")
    (part,) = (tmp_path / "tiny").glob("*.jsonl")
    with part.open("a") as file:  # killed in the middle of a line
        file.write('{"id": "scene_2", "tex')
    again = evaluate(protocols, tmp_path, f"tiny={checkpoint}")
    assert asked[0] not in asked[1:]  # what was done is not done again
    assert numbers(again) == {key: value for key, value in numbers(found).items() if key[0] == "tiny"}


@pytest.mark.slow  # two processes that load everything
def test_the_number_of_processes_moves_no_number(evaluated, protocols, checkpoint, tmp_path):
    words = ["--task", "all", "--protocols", protocols, "--data", tmp_path, "--out", tmp_path, "--cpu"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", EVAL / "run.py"]
    command = [*command, *words, "--model", f"tiny={checkpoint}"]
    subprocess.run(list(map(str, command)), check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert len(list((tmp_path / "tiny").glob("*.1.jsonl"))) == 2
    _, found = evaluated
    again = numbers(tables.load([tmp_path]))
    assert again == {key: value for key, value in numbers(found).items() if key[0] == "tiny"}


def test_records_of_several_processes_and_of_other_runs(tmp_path):
    for rank, ids in enumerate((["a", "c"], ["b"])):
        results.append(tmp_path / f"task.key.{rank}.jsonl", [{"id": i} for i in ids])
    results.append(tmp_path / "task.other.0.jsonl", [{"id": "x"}])
    assert sorted(results.read_records(tmp_path, "task", "key")) == ["a", "b", "c"]
    line = {"id": "d", "text": "read\u2028after\u2029lines\x85end"}  # no ends of lines to JSON
    results.append(tmp_path / "task.key.0.jsonl", [line])
    assert results.read_records(tmp_path, "task", "key")["d"] == line
    header = {"seed": 0, "hash": "a"}
    assert (
        results.key_of(header)
        == results.key_of(dict(reversed(header.items())))
        != results.key_of(header | {"seed": 1})
    )


def test_another_seed_is_another_run(evaluated, protocols, checkpoint):
    out, found = evaluated
    drawn = {path: path.read_bytes() for path in (out / "tiny" / "media").glob("*/*.png")}
    evaluate(protocols, out, f"tiny={checkpoint}", more=("--seed", "1", "--limit", "1"))
    assert len(drawn) == COUNT and all(path.read_bytes() == content for path, content in drawn.items())
    assert len(list((out / "tiny" / "media").glob("*/*.png"))) == COUNT + 1  # beside the first run's
    name, result = next(iter(tables.load([out])["tiny"].items()))
    assert result["seed"] == 1 and result["deviations"] == ["1 examples of each group only"]
    assert result["key"] != found["tiny"][name]["key"]
    evaluate(protocols, out, f"tiny={checkpoint}")  # the first run's records are still there
    assert numbers({"tiny": tables.load([out])["tiny"]}) == {k: v for k, v in numbers(found).items() if k[0] == "tiny"}


def test_other_media_with_the_same_ids_and_texts_are_another_run(tmp_path, monkeypatch):
    """A noisy copy of a data set: what was heard in the clean one is not taken for it."""
    wanted = {"task": "asr", "about": "a", "prompt": ["hear", {"speech": "given"}]}
    wanted["data"] = {"source": "saved_dataset", "version": "v", "options": {"media": "audio", "text": "text"}}
    wanted["rows"] = [{"name": "w", "metric": "wer", "better": "lower"}]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "asr.yaml").write_text(yaml.safe_dump(wanted))
    heard = []
    monkeypatch.setattr(systems.Constant, "answer", lambda self, wanted, batch, seed: heard.append(batch[0].given)
                        or [systems.Output("a b")] * len(batch))  # fmt: skip
    for name in ("clean", "noisy"):
        table = datasets.Dataset.from_dict({"audio": [name.encode()], "text": ["a b"]})
        table.save_to_disk(tmp_path / name)
        words = ["--task", "asr", "--protocols", str(tmp_path / "set"), "--data", str(tmp_path / name), "--cpu"]
        for _ in range(2):  # the second time all is done
            run.main([*words, "--out", str(tmp_path / "out"), "--model", "broken:silence"])
    assert heard == [b"clean", b"noisy"]
    table = datasets.Dataset.from_dict({"audio": [b"x"], "text": ["..."]}).save_to_disk(tmp_path / "mute")
    with pytest.raises(ValueError, match="Data set: row 0 .* no text|leaves no words"):
        wanted["rows"][0]["options"] = {"normaliser": "basic"}
        (tmp_path / "set" / "asr.yaml").write_text(yaml.safe_dump(wanted))
        run.main([*words[:4], "--data", str(tmp_path / "mute"), "--out", str(tmp_path / "no"), "--model", "original"])


def test_candidates_may_be_told_to_be_sampled(protocols, checkpoint, tmp_path):
    """As the paper's protocols say; a checkpoint that chooses among replies samples them anyway."""
    wanted = protocol.read(protocols / "text_to_image.yaml")
    told = replace(wanted, decoding=wanted.decoding | {"do_sample": True})
    model, asked = systems.Model("tiny", checkpoint, "cpu", candidates=2), examples.load(wanted, tmp_path)[:1]
    first, second = (model.answer(each, asked, seed=0)[0].ids for each in (wanted, told))
    assert first == second


def test_the_key_is_of_all_code_that_makes_numbers():
    names = {path.relative_to(EVAL.parent).as_posix() for path in results.code_files()}
    assert {"eval/judges.py", "eval/metrics/wer/wer.py", "processing_anygpt/judging/scores.py"} <= names
    assert {"modeling_anygpt/generation_anygpt.py", "processing_anygpt/tiny_world/language.py"} <= names


def test_an_answer_without_a_word_is_judged_too():
    """Its own text is the reference, of which the normaliser may leave nothing."""
    row = protocol.Row("r", "wer", field="heard", against="text", options={"normaliser": "whisper_english"})
    records = [{"id": str(i), "text": text, "judged": {"heard": "yes"}} for i, text in enumerate(["Um.", "Yes."])]
    example = examples.Example("0", ("x",))
    found = results.scored(row, (example, example), tuple(records), Path(), {})
    assert found["items"] == {"0": [1.0, 1.0], "1": [0.0, 1.0]}


def test_systems_have_names_of_their_own(checkpoint, tmp_path):
    for words, name in (
        (checkpoint, Path(checkpoint).name), (f"codec:{checkpoint}", f"codec-{Path(checkpoint).name}"),
        (f"broken:shuffled:{checkpoint}", f"shuffled-{Path(checkpoint).name}"), (f"a={checkpoint}", "a"),
        ("b=first:" + checkpoint, "b"), ("broken:silence", "silence"), ("c=original", "c"),
    ):  # fmt: skip
        assert systems.parse(words)[0] == name
    (tmp_path / "lr=1" / "model").mkdir(parents=True)
    (tmp_path / "lr=1" / "model" / "config.json").write_text('{"model_type": "anygpt"}')
    folder = str(tmp_path / "lr=1" / "model")
    assert systems.parse(folder) == ("model", "", folder) and systems.parse(f"x={folder}") == ("x", "", folder)
    with pytest.raises(ValueError, match="two systems called 'model', whose results would be one file"):
        systems.check([folder, f"model=first:{folder}"], tmp_path)
    with pytest.raises(ValueError, match="inside the checkpoint"):
        systems.check([f"codec:{folder}"], Path(folder) / "results")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="holds a 'llama' model, need an AnyGPT checkpoint: `anygpt init`"):
        systems.parse(str(tmp_path))


@pytest.mark.parametrize(
    "words, message",
    [
        ("--task text_to_image --protocols tiny --model original --limit 0", "Got --limit 0; allowed"),
        ("--task text_to_image --protocols tiny --model original --batch -1", "Got --batch -1; allowed"),
        ("--task text_to_image --protocols tiny --model codec:nofolder", "nofolder is no checkpoint folder.*codec:"),
        ("--task asr --protocols nowhere --model original", "No set of protocols 'nowhere'. There are: paper, tiny"),
        ("--task tts --model original", "No judge openai/whisper-medium in JUDGES: hf download openai/whisper-medium"),
        ("--task text_to_image --protocols tiny --model nofolder", "nofolder is no checkpoint folder"),
        (
            "--task text_to_image --protocols tiny --model broken:heart",
            "Unknown system 'broken:heart'. Known: ",
        ),
        (
            "--task asr --protocols tiny --model broken:silence",
            "No file .*codes_heldout.npz: train/make",
        ),
        ("--task text_to_music --protocols tiny --model broken:silence", "No sound font .*: ln -s"),
    ],
)
def test_what_is_missing_is_said_in_one_line(words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run.main([*words.split(), "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--cpu"])
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- reports


def test_the_page_needs_nothing_else(evaluated, tmp_path):
    out, _ = evaluated
    report.main([str(out), "--page", str(tmp_path / "page.html"), "--data", str(tmp_path)])
    page = (tmp_path / "page.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert page.count("data:image/png") > 2 * COUNT and "text-to-image, every attribute right" in page
    assert "shuffled" in page and "worst by" not in page  # three items: none but the first


def test_a_card_gets_its_table_and_model_index(evaluated, tmp_path):
    out, found = evaluated
    card = tmp_path / "card.md"
    card.write_text("---\nlicense: mit\n---\nabove\n<!-- results: begin, by -->\nold\n<!-- results: end -->\nbelow\n")
    report.main([str(out), "--card", str(card)])
    first = card.read_text()
    report.main([str(out), "--card", str(card)])
    assert card.read_text() == first and "old" not in first and "above" in first and "below" in first
    loaded = ModelCard.load(card)
    values = {result.metric_name: result.metric_value for result in loaded.data.eval_results}
    row = next(row for r in found["tiny"].values() for row in r["rows"] if r["task"] == "text_to_image")
    assert values["text-to-image, every attribute right (pixels)"] == row["value"] and loaded.data.license == "mit"
    assert ">= 0.90, " in first
    card.write_text("no block")
    with pytest.raises(ValueError, match="has no lines <!-- results: begin"):
        report.main([str(out), "--card", str(card)])


@pytest.mark.parametrize(
    "change, message",
    [
        ({}, "two results of 'a' for p"),
        ({"protocol": {"name": "p", "hash": "2"}, "system": {"name": "b"}}, "two versions of the protocol p"),
        (
            {"protocol": {"name": "q", "hash": "1"}, "system": {"name": "a", "fingerprint": "y"}},
            "two checkpoints called 'a': p is of another than q",
        ),
    ],
)
def test_what_belongs_in_no_common_table_is_refused(change, message):
    first = {"protocol": {"name": "p", "hash": "1"}, "system": {"name": "a", "fingerprint": "x"}, "folder": "A"}
    with pytest.raises(ValueError, match=f"A and B hold .*{message}"):
        tables.refuse_mixtures(first, first | {"folder": "B"} | change)
    tables.refuse_mixtures(first, first | {"system": {"name": "b", "fingerprint": "y"}})


def test_results_of_other_data_and_other_files_are_refused(tmp_path):
    first = {"protocol": {"name": "p", "hash": "1"}, "system": {"name": "a"}, "folder": "A"}
    first["items"] = [{"id": "0", "texts": ["x"]}, {"id": "1", "texts": ["y"]}]
    second = first | {"system": {"name": "b"}, "folder": "B", "items": [{"id": "1", "texts": ["y"]}]}
    tables.refuse_mixtures(first, second)  # fewer items of the same data
    second["items"] = [{"id": "1", "texts": ["z"]}]
    with pytest.raises(ValueError, match="A and B hold results for p of two data sets: 1 is"):
        tables.refuse_mixtures(first, second)
    (tmp_path / "model").mkdir()
    for text, message in (('{"system": ', "x.json is damaged"), ('{"a": 1}', "x.json is no result file")):
        (tmp_path / "model" / "x.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            tables.load([tmp_path])


def test_a_card_has_rows_that_only_the_original_has():
    row = {"name": "r", "judge": "j", "better": "higher", "bar": {"least": 0.5}}
    scores = {"value": 1.0, "low": 1.0, "high": 1.0, "count": 9}

    def system(kind, name, rows):
        return {name: {"task": "asr", "protocol": {"name": name, "file": {"rows": [row]}}, "system": {"kind": kind},
                       "rows": rows, "deviations": []}}  # fmt: skip

    found = {"m": system("model", "q", [row | scores]), "o": system("original", "p", [row | scores])}
    text = tables.card_table(found, "m")
    assert "| r | j |  |  | >= 0.50 | 1.000 |" in text and "| 9 | >= 0.50, reached |  |" in text


def test_floors_are_shown_and_what_is_above_them_marked():
    row = {"name": "r", "judge": "j", "floor": 0.1, "better": "higher", "bar": None}
    result = {"task": "asr", "protocol": {"name": "p", "file": {"rows": [row]}}, "deviations": []}

    def system(kind, value):
        scores = {"value": value, "low": value - 0.05, "high": value + 0.05, "count": 9}
        return {"p": result | {"system": {"kind": kind}, "rows": [row | scores]}}

    text = tables.floor_table(
        {"m": system("model", 0.9), "x": system("broken", 0.12), "y": system("broken", 0.3)}, "m"
    )
    assert "| r | j | 0.900 | 0.120 | 0.300 (!) | 0.1 |" in text
    elsewhere = system("model", 0.9)["p"] | {"protocol": {"name": "q", "file": {"rows": [row]}}}
    several = {"m": {"q": elsewhere}, "c": system("codec", 0.8), "x": system("broken", 0.12)}
    assert "| r | j | codec alone: 0.800 | 0.120 | 0.1 |" in tables.floor_table(several, "m")
    row["floor"] = None  # such a row can't show anything
    assert "| r |" not in tables.floor_table({"m": system("model", 0.9), "x": system("broken", 0.12)}, "m")


@pytest.mark.parametrize("better, verdict", [("higher", "better"), ("lower", "worse")])
def test_differences_are_paired_and_marked(better, verdict):
    def row(items):
        return {"items": {str(i): [value, 1] for i, value in enumerate(items)}}

    base = [0.1 * i for i in range(30)]  # far apart: unpaired, a shift of 0.1 would drown
    assert tables.difference(row([x + 0.1 for x in base]), row(base), better)["verdict"] == verdict
    assert tables.difference(row(base), row(base), better)["verdict"] == ""
    assert tables.difference({}, row(base), better) is None


def test_each_side_of_a_difference_has_its_own_weights():
    """As where an answer is measured against the text that was written with it."""
    good = {"items": {str(i): [0.0, 9] if i % 2 else [0.1, 1] for i in range(30)}}  # 0.01
    poor = {"items": {str(i): [0.5, 1] if i % 2 else [0.5, 9] for i in range(30)}}  # 0.5
    first, second = tables.difference(good, poor, "lower"), tables.difference(poor, good, "lower")
    assert first["difference"] == pytest.approx(-0.49) == -second["difference"]
    assert (first["verdict"], second["verdict"]) == ("better", "worse")


def test_a_table_of_a_few_examples_says_so():
    results = {"m": {"p": {"deviations": ["2 examples of each group only", "other judge"]}}, "n": {}}
    assert tables.limits(results) == "\nm: 2 examples of each group only.\n"


def test_models_stand_side_by_side_with_their_significance(tmp_path, capsys):
    def save(name: str, shift: float) -> None:
        items = {str(i): [0.01 * i + shift, 1] for i in range(20)}
        row = {"name": "r", "judge": "j", "better": "higher", "value": 0.1 + shift, "low": shift, "high": 0.2 + shift}
        result = {"task": "asr", "protocol": {"name": "p", "hash": "1", "file": {"rows": [row]}}}
        system = {"name": name, "kind": "model"}
        (tmp_path / name / name).mkdir(parents=True)
        content = result | {"system": system, "rows": [row | {"items": items}], "deviations": []}
        results.write_json(tmp_path / name / name / "p.json", content)

    for name, shift in (("a", 0.1), ("b", 0.3), ("c", 0.0), ("d", 0.1)):
        save(name, shift)
    report.main([str(tmp_path / name) for name in "abcd"])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.split(" | ")[2:] == [
        "0.200 [0.100, 0.300]",
        "0.400 [0.300, 0.500] ▲",
        "0.100 [0.000, 0.200] ▼",
        "0.200 [0.100, 0.300] |",
    ]


def test_rows_of_one_name_and_two_judges_stay_apart():
    """As in the paper's text_to_image: one thing, CLIP-I and CLIPScore."""
    rows = [{"name": "r", "judge": judge, "value": value} for judge, value in (("i", 0.7), ("t", 0.2))]
    result = {"task": "asr", "protocol": {"name": "p", "file": {"rows": rows}}, "rows": rows}
    found = tables.lines({"m": {"p": result}})
    assert [(line["row"]["judge"], line["cells"]["m"]["value"]) for line in found] == [("i", 0.7), ("t", 0.2)]


def test_bars_may_depend_on_the_codec():
    line = {"row": {"bar": {"least_of_codec": 0.9}, "better": "higher"}, "cells": {"c": {"value": 0.8}}}
    assert tables.bar_of(line, "c") == (">= 0.72", pytest.approx(0.72))
    assert tables.bar_of(line, None) == ("", None)
    line["row"] = {"bar": {"most_above_codec": 0.1}, "better": "lower"}
    assert tables.bar_of(line, "c") == ("<= 0.90", pytest.approx(0.9))
