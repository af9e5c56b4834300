"""A grown text model that learns to speak: its readings, the first rows of its codes, and the whole of it (slow)."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from training_tools import EMBEDDED, small_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from processing_anygpt import AnyGPTProcessor
from processing_anygpt.tiny_world import language, voices

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT / "train"), str(ROOT / "eval")]  # siblings of the scripts import each other by name


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_examined_is_not_taught(tmp_path, monkeypatch):
    import make_readings

    (tmp_path / "a.gguf").touch()
    monkeypatch.setattr(make_readings, "load_backbone", lambda source: (torch.nn.Linear(1, 1), None))
    monkeypatch.setattr(make_readings, "own_text", lambda *_: ["The end."])
    monkeypatch.setattr(voices, "say", lambda text, *_: np.full(800, len(text) / 100, np.float32))
    make_readings.main(["--out", str(tmp_path), "--scale", "0.05", "--backbone", str(tmp_path / "a.gguf")])
    parts = {name: read(tmp_path / f"{name}.jsonl") for name in make_readings.COUNTS}
    said = {name: [row["text"] for row in parts[name]] for name in ("phrases", "sentences", "heldout")}
    assert len(said["sentences"]) == len(set(said["sentences"])) == 300 and len(said["heldout"]) == 3
    assert all(language.is_held_out(text) for text in said["heldout"])
    assert not any(language.is_held_out(text) for text in said["phrases"] + said["sentences"])
    assert all((tmp_path / row["speech"]).is_file() for name in said for row in parts[name])
    paragraphs = [row["document"] for row in parts["text"]]
    assert len(paragraphs) == 25 and all(len(text) in make_readings.PARAGRAPH for text in paragraphs)
    (reply,) = read(tmp_path / "replies.jsonl")
    assert parts["own"] == [{"document": "The end."}] and reply["messages"][0]["content"] == "The end."


def test_spoiled_items_of_the_examination_are_said_in_one_line(tmp_path):
    grown = pytest.importorskip("grown")
    path = tmp_path / "heldout.jsonl"
    path.write_text(json.dumps({"text": "a\u2028b", "speech": "a.wav"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert grown.read_items(tmp_path, None) == [{"text": "a\u2028b", "speech": str(tmp_path / "a.wav")}]
    with pytest.raises(ValueError, match="Got --limit -1"):
        grown.read_items(tmp_path, -1)
    for text, message in (
        ("", "is empty"),
        ("{", "heldout.jsonl:1 is no JSON"),
        ('{"text": ""}', "needs text, speech"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"{message}.*train/make_readings.py"):
            grown.read_items(tmp_path, None)


def test_a_recording_is_cut_where_its_words_begin(tmp_path):
    """The codes of the recording stand behind the words, none lost; what can't be cut is left out."""
    pytest.importorskip("pocketsphinx")
    if not voices.is_installed("flite_slt"):
        pytest.skip("needs flite")
    import word_by_word

    texts = ["one red star", "one xyzzyq", "Two, cats!", "seven purple elephants and a constitution"]
    for number, text in enumerate(texts):
        said = "one" if number == 3 else text
        soundfile.write(tmp_path / f"{number}.wav", voices.say(said, "flite_slt"), 16_000)
    rows = [{"text": text, "speech": f"{number}.wav"} for number, text in enumerate(texts)]
    data, out = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--model", str(EMBEDDED), "--instructions", str(ROOT / "train/configs/speech_instructions.yaml")]
    word_by_word.main([str(data), "--out", str(out), *options])
    processor = AnyGPTProcessor.from_pretrained(EMBEDDED)
    made = read(out)
    assert [row["messages"][0]["content"].endswith(text) for row, text in zip(made, texts[::2], strict=True)]
    for row, text, number in zip(made, texts[::2], (0, 2), strict=True):
        reply = row["messages"][1]["content"]
        assert [block["text"] for block in reply[::2]] == text.split()
        pieces = [np.array(block["codes"]) for block in reply[1::2]]
        (whole,) = processor.encode_media("speech", [str(tmp_path / f"{number}.wav")])
        assert np.array_equal(np.concatenate(pieces, 1), whole)
        ids = processor.apply_chat_template(row["messages"], tokenize=True)
        written, spoken = processor.parse_output(ids, joined=("speech",))[-2:]
        assert written.text.endswith(text) and np.array_equal(spoken.codes[:1], whole)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "one"}\n')
    with pytest.raises(ValueError, match="bad.jsonl:1 is not"):
        word_by_word.main([str(bad), "--out", str(out), *options])
    with pytest.raises(ValueError, match="In none of 1 recordings"):
        bad.write_text(json.dumps(rows[3]) + "\n")
        word_by_word.main([str(bad), "--out", str(out), *options])
    assert len(read(out)) == 2


@pytest.mark.parametrize("tied", [True, False])
def test_codes_start_as_the_letters_of_their_phones(tied, tmp_path):
    """Of codes whose phone is sure the nearest letters are that phone's; other rows stay."""
    import start_codes
    from codebook_init import speech_codebook

    small_checkpoint(tmp_path / "model", tied)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    matrices = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    before = [matrix.detach().clone() for matrix in matrices]
    start_codes.start(model, tokenizer, EMBEDDED, np.random.default_rng(0))
    spec = model.config.modality("speech")
    codes = slice(spec.first_code_id, spec.first_code_id + spec.num_codes)
    sure, phones = speech_codebook(EMBEDDED)[0].max(1)
    for matrix, old in zip(matrices, before, strict=True):
        other = torch.ones(len(old), dtype=torch.bool)
        other[codes] = False
        assert torch.equal(matrix[other], old[other]) and len(matrix[codes].unique(dim=0)) == spec.num_codes
        spelled = [tokenizer(start_codes.LETTERS[phone])["input_ids"] for phone in start_codes.PHONES]
        letters = torch.stack([old[ids].mean(0) for ids in spelled])
        near = torch.cdist(matrix[codes].detach(), letters).argmin(1)
        right = (letters[near] == letters[phones]).all(1)  # some phones are spelled alike
        assert right[sure > 0.8].float().mean() > 0.8


def run(*words) -> str:
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_smollm2_begins_to_speak(request, tmp_path):
    """`make smollm2-speech` in miniature: every step fits the next, the loss falls, English stays."""
    pytest.importorskip("trl")
    pytest.importorskip("pocketsphinx")
    folder = Path(request.config.getoption("--smollm2"))
    if not list(folder.glob("*.gguf")) or not voices.is_installed("flite_slt"):
        pytest.skip("needs SmolLM2 (make smollm2) and flite")
    data, start = tmp_path / "readings", tmp_path / "start"
    grow = "from serving_anygpt.grow import init; import sys; init(sys.argv[1], sys.argv[2], ['speech'])"
    run("-c", grow, folder, tmp_path / "any")
    run("train/start_codes.py", "--model", tmp_path / "any", "--out", start)
    run("train/make_readings.py", "--out", data, "--scale", "0.05", "--backbone", folder)
    options = ["--instructions", "train/configs/speech_instructions.yaml", "--pad-seconds", "0.04", "--workers", "0"]
    words = [data / "phrases.jsonl", data / "sentences.jsonl", "--model", start, *options[:2]]
    run("train/word_by_word.py", *words, "--out", data / "said.jsonl")
    for part in ("sentences", "said", "text", "own", "replies"):
        out = data / "rows" / part
        run("train/prepare_data.py", data / f"{part}.jsonl", "--model", start, "--out", out, *options)
    shares = {"sentences": 0.4, "said": 0.35, "text": 0.05, "own": 0.1, "replies": 0.1}
    mixture = {part: {"rows": str(data / "rows" / part), "rate": rate} for part, rate in shares.items()}
    changes = {"model": start, "mixture": json.dumps(mixture), "output_dir": tmp_path / "run", "max_steps": 20}
    changes |= {"logging_steps": 2, "save_steps": 20, "max_length": 384, "gradient_accumulation_steps": 1}
    run("train/sft.py", "train/configs/sft_smollm2.yaml", *[w for k, v in changes.items() for w in (f"--{k}", v)])
    log = json.loads((tmp_path / "run" / "checkpoint-20" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss_speech"] for entry in log if "loss_speech" in entry]
    assert losses[-1] < losses[0] - 1
    model = tmp_path / "run" / "model"
    words = ["--model", model, "--backbone", folder, "--data", data, "--limit", "2"]
    report = json.loads(run("eval/grown.py", *words))
    assert {"asr_wer", "tts_wer", "codec_wer", "original_wer"} < set(report) and report["original_wer"] <= 0.3
    for text in report["perplexity"].values():
        assert 1 < text["before"] < 60 and text["after"] < 1.25 * text["before"]  # 20 steps are too few to heal
    trained, first = (load_file(path / "model.safetensors") for path in (model, start))
    key = "model.embed_tokens.weight"
    assert torch.equal(trained[key][:49000], first[key][:49000])  # words; codes have moved
    assert not torch.equal(trained[key], first[key])


def test_checkpoints_are_mixed(tmp_path):
    """The mean of two, three quarters of the way from a third; embeddings the whole way; unfit ones are refused."""
    import mix

    for seed, name in enumerate(("base", "a", "b")):
        model = AutoModelForCausalLM.from_pretrained(small_checkpoint(tmp_path / name))
        torch.manual_seed(seed)
        for weight in model.parameters():
            torch.nn.init.normal_(weight)
        model.save_pretrained(tmp_path / name)
    base, a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "a", "b"))
    words = [str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "mixed")]
    mix.main([*words, "--base", str(tmp_path / "base"), "--share", "0.75"])
    mixed = load_file(tmp_path / "mixed" / "model.safetensors")
    for name, weight in mixed.items():
        mean = (a[name] + b[name]) / 2
        share = 1 if "embed_tokens" in name or "lm_head" in name else 0.75
        assert torch.allclose(weight, base[name] + share * (mean - base[name]), atol=1e-6)
    with pytest.raises(ValueError, match="exists already"):
        mix.main(words)
    words[-1] = str(tmp_path / "other")
    with pytest.raises(ValueError, match="A share of 0 to below 1 goes with a base"):
        mix.main([*words, "--share", "0.5"])
    small_checkpoint(tmp_path / "wide", hidden_size=64)
    with pytest.raises(ValueError, match="wide has other weights"):
        mix.main([str(tmp_path / "wide") if word == str(tmp_path / "b") else word for word in words])
    tokenizer = json.loads((tmp_path / "b" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (tmp_path / "b" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="b has other ids"):
        mix.main(words)
