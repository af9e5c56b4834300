"""The scripts that train the codecs: two steps and a result, exact resume, teachers, codebooks, errors of one line."""

import importlib
import itertools
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from accelerate.state import AcceleratorState
from diffusers import VQModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, HubertConfig, HubertModel, Wav2Vec2FeatureExtractor
from transformers.utils import logging

from modeling_anygpt.codecs import SoundStormModel, SpectralCodecModel, SpeechTokenizerConfig, SpeechTokenizerModel
from processing_anygpt.tiny_world import voices

TRAIN = Path(__file__).parents[1] / "train"
SCRIPTS = ("codec_speech", "codec_decoder", "soundstorm", "codec_image", "codec_music")
TOY = {
    "codec_speech": "--warm 1 --batch 2 --frames 6 --heldout 20 --n_filters 2 --dimension 40 --semantic_dimension 40 "
    "--codebook_size 16 --num_codebooks 3",
    "codec_decoder": "--adversary_from 1 --adversary_width 2 --batch 2 --frames 14 --heldout 20",
    "soundstorm": "--batch 2 --frames 130 --hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2",
    "codec_image": "--warm 1 --batch 2 --heldout 2 --codes 8 --embed_dim 4 --widths 4 8",
    "codec_music": "--warm 1 --batch 2 --frames 4 --heldout 1 --codebook_size 16 --codebook_dim 8 --hidden_size 8 "
    "--encoder_layers 1 --decoder_layers 1",
}


@pytest.fixture(autouse=True)
def alone():
    """accelerate keeps one state per process, and the scripts silence transformers' bars."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    logging.enable_progress_bar()


@pytest.fixture
def script(monkeypatch):
    """A module of train/, which is no package."""
    monkeypatch.syspath_prepend(str(TRAIN))
    return importlib.import_module


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Toy data of all four scripts in one folder."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    phones = np.repeat(rng.integers(0, 5, 40), 3).astype(np.int8)  # a new tone of five pitches every 60 ms
    pitch = np.repeat(200 * 1.5**phones, 320)
    audio = (20000 * np.sin(np.cumsum(pitch) * 2 * np.pi / 16000)).astype(np.int16)
    for name in "ab":
        np.savez(folder / f"clips_{name}.npz", audio=audio, phones=phones)
        np.save(folder / f"features_{name}.npy", rng.standard_normal((120, 40)).astype(np.float16))
    np.save(folder / "clips_0.npy", rng.integers(-9999, 9999, (4, 6400)).astype(np.int16))
    white = np.full((5, 16, 16, 3), 255, np.uint8)
    white[:, 4:12, 4:12] = rng.integers(0, 255, (5, 8, 8, 3))
    np.savez(folder / "pictures.npz", pictures=white)
    sizes = {"n_filters": 2, "dimension": 8, "semantic_dimension": 8, "codebook_size": 16, "num_codebooks": 3}
    torch.manual_seed(0)
    SpeechTokenizerModel(SpeechTokenizerConfig(**sizes)).save_pretrained(folder / "codec")
    arrays = {"codes": rng.integers(0, 16, (3, 270)).astype(np.uint16), "offsets": np.array([0, 60, 140, 200, 270])}
    for name in ("train", "heldout"):
        np.savez(folder / f"codes_{name}.npz", **arrays, voice=np.array(["a", "a", "b", "a"]))
    return folder


def command(name: str, data: Path, out: Path, more: str = "") -> list[str]:
    inputs = {
        "codec_image": f"--data {data / 'pictures.npz'}",
        "codec_decoder": f"--data {data} --codec {data / 'codec'}",
        "soundstorm": f"--data {data} --codec {data / 'codec'}",
    }
    words = f"{TRAIN}/configs/{name}.yaml {inputs.get(name, f'--data {data}')} --out {out} {TOY[name]} --log_every 3"
    return f"{words} --save_every 2 --validate_every 2 {more}".split()


def training(out: Path) -> Path:
    return out.with_name(out.name + "_training")


def losses(out: Path) -> list[dict]:
    return json.loads((training(out) / "losses.json").read_text())


class Killed(BaseException):
    """The process dies."""


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_killed_run_goes_on_exactly(name, script, data, tmp_path, monkeypatch, capsys):
    """Four steps at once, and four with a death in the last one and a state of two on disk, leave the same losses, the
    same state and the same weights."""
    module, codec_training = script(name), script("codec_training")
    steps = "--steps 3 --decoder_steps 1" if name == "codec_image" else "--steps 4"
    module.main(command(name, data, tmp_path / "once", steps))
    assert "left: " in capsys.readouterr().out
    assert [entry["step"] for entry in losses(tmp_path / "once")] == [3, 4]

    def seed_until_death(seed, step, process):
        if step == 3:
            raise Killed
        return seed_of(seed, step, process)

    seed_of = codec_training.seed_of
    monkeypatch.setattr(codec_training, "seed_of", seed_until_death)
    with pytest.raises(Killed):
        module.main(command(name, data, tmp_path / "twice", steps))
    assert not list((tmp_path / "twice").iterdir()), "no result before the end"
    monkeypatch.setattr(codec_training, "seed_of", seed_of)
    module.main([str(training(tmp_path / "twice") / "settings.yaml"), "--resume"])
    assert "going on after step 2 of 4" in capsys.readouterr().out

    assert losses(tmp_path / "twice") == losses(tmp_path / "once")
    same_tensors(*(training(tmp_path / run) / "training.safetensors" for run in ("once", "twice")))
    same_tensors(*(next((tmp_path / run).glob("*.safetensors")) for run in ("once", "twice")))


def same_tensors(first: Path, second: Path) -> None:
    once, twice = load_file(first), load_file(second)
    assert once.keys() == twice.keys()
    assert [key for key in once if not torch.equal(once[key], twice[key])] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_two_steps_leave_a_codec_and_samples(name, script, data, tmp_path):
    script(name).main(command(name, data, tmp_path / "out", "--steps 2"))
    loader = VQModel if name == "codec_image" else AutoModel
    codec = loader.from_pretrained(tmp_path / "out").eval()
    assert codec.dtype == torch.float32
    (weights,) = (tmp_path / "out").glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float16}
    if name in ("codec_speech", "codec_decoder"):
        assert codec.encode(torch.zeros(1, 6400)).shape == (1, 3, 20)
    elif name == "codec_music":
        assert codec.encode(torch.zeros(1, 6400)).shape == (1, 2, 10)
    elif name == "soundstorm":
        assert codec.config.paper_decoding
        assert codec.generate(torch.randint(16, (1, 5))).shape == (1, 5, 3)
    else:
        assert codec.encode(torch.zeros(1, 3, 16, 16)).latents.shape == (1, 4, 8, 8)
    samples = training(tmp_path / "out") / "samples"
    with Image.open(samples / "step_000002.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.dtype == np.uint8 and pixels.min() < pixels.max()
    if name != "codec_image":
        sound, rate = soundfile.read(samples / "step_000002.wav")
        assert rate == 16000 and 0 < np.abs(sound).max() <= 1


def test_a_sharper_decoder_reads_the_same_codes(script, data, tmp_path):
    script("codec_decoder").main(command("codec_decoder", data, tmp_path / "out", "--steps 3"))
    before, after = (
        SpeechTokenizerModel.from_pretrained(folder).eval() for folder in (data / "codec", tmp_path / "out")
    )
    before = before.half().float()  # as the codec is written
    wave = torch.randn(1, 6400)
    codes = before.encode(wave)
    assert torch.equal(after.encode(wave), codes)
    assert not torch.equal(after.decode(codes), before.decode(codes))


def test_decoder_steps_leave_the_codes_alone(script, data, tmp_path):
    module, out = script("codec_image"), tmp_path / "codec"
    module.main(command("codec_image", data, out, "--steps 2"))
    before = VQModel.from_pretrained(out).state_dict()
    module.main(command("codec_image", data, out, "--steps 2 --decoder_steps 1 --resume"))
    after = VQModel.from_pretrained(out).state_dict()
    changed = {name.split(".")[0] for name in before if not before[name].equal(after[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_the_time_limit_leaves_a_run_to_resume(script, data, tmp_path, capsys):
    script("codec_music").main(command("codec_music", data, tmp_path / "out", "--steps 3 --minutes 0"))
    assert losses(tmp_path / "out") == []
    script("codec_music").main(command("codec_music", data, tmp_path / "out", "--steps 3 --minutes 9 --resume"))
    assert "going on after step 1 of 3" in capsys.readouterr().out
    assert [entry["step"] for entry in losses(tmp_path / "out")] == [3]


# ---- what level 1 learns from


@pytest.fixture(scope="module")
def hubert(tmp_path_factory) -> str:
    """A speech model of 50 frames a second and two layers of width 40."""
    folder = str(tmp_path_factory.mktemp("hubert"))
    torch.manual_seed(0)
    convolutions = {"conv_dim": [4] * 3, "conv_stride": [20, 4, 4], "conv_kernel": [40, 4, 4]}
    sizes = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    more = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    HubertModel(HubertConfig(**convolutions, **sizes, **more)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def test_a_speech_model_gives_the_mean_of_its_hidden_states(script, hubert):
    teacher = script("speech_teachers").SpeechModel(hubert, 40, torch.device("cpu"))
    wave = torch.randn(2, 3200)
    features = teacher.features(wave, 10)
    assert features.shape == (2, 9, 40)  # without padding the last frame is lost
    normal = (wave - wave.mean(1, keepdim=True)) / wave.std(1, correction=0, keepdim=True)
    with torch.no_grad():
        layers = HubertModel.from_pretrained(hubert).eval()(normal, output_hidden_states=True).hidden_states
    assert len(layers) == 3
    torch.testing.assert_close(features, sum(layers) / 3, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="gives 9 frames for 20 of the codec, allowed 19 or more"):
        teacher.features(wave, 20)


def test_distillation_is_the_papers(script):
    distillation = script("speech_teachers").distillation
    features = torch.randn(2, 7, 5)
    loss, cosine = distillation(3 * features, features)
    assert (float(loss), float(cosine)) == pytest.approx((np.log(1 + 1 / np.e), 1), abs=1e-5)
    loss, cosine = distillation(-features, features)
    assert (float(loss), float(cosine)) == pytest.approx((np.log(1 + np.e), -1), abs=1e-5)
    over_time = features * torch.tensor([1.0, -1, 1, 1, 1])  # one of five dimensions turned round
    assert float(distillation(over_time, features)[1]) == pytest.approx(0.6, abs=1e-5)


@pytest.mark.parametrize("teacher", ["model", "features"])
def test_level_1_learns_from_features(teacher, script, data, hubert, tmp_path):
    source = hubert if teacher == "model" else teacher
    script("codec_speech").main(command("codec_speech", data, tmp_path / "out", f"--steps 3 --teacher {source}"))
    assert -1 <= losses(tmp_path / "out")[0]["cosine"] <= 1


@pytest.mark.parametrize("teacher", ["model", "features"])
def test_a_teacher_of_another_width_is_refused(teacher, script, data, hubert, tmp_path):
    source = hubert if teacher == "model" else teacher
    words = command("codec_speech", data, tmp_path / "out", f"--steps 2 --teacher {source} --semantic_dimension 41")
    with pytest.raises(ValueError, match="40 dimensions, level 1 is to predict 41. Set semantic_dimension: 40"):
        script("codec_speech").main(words)


# ---- codebooks


def test_a_collapsed_codebook_comes_to_life(script):
    """All codes on one spot, data in 16 heaps: codes that nothing chooses move to the data."""
    heaps = 10 * torch.randn(16, 8)
    books = [torch.zeros(16, 8) + 0.001 * torch.randn(16, 8) for _ in range(2)]
    averages = script("codebook_averages").CodebookAverages(books, decay=0.98, dead=0.03, revived=0.1)
    for _ in range(400):
        vectors = heaps[torch.randint(16, (64,))] + 0.1 * torch.randn(64, 8)
        levels = averages.quantise(vectors)
    assert levels.shape == (2, 64, 8)
    assert (vectors - levels.sum(0)).square().mean() < 0.05 * vectors.square().mean()
    assert averages.used[0] >= 12


def test_codebooks_start_from_data(script):
    module = script("codebook_averages")
    vectors = 5 + torch.randn(500, 4)
    errors = []
    for rounds in (0, 5):
        torch.manual_seed(0)
        books = [torch.zeros(16, 4), torch.zeros(16, 4)]
        averages = module.CodebookAverages(books, decay=0.98, dead=0.03, revived=0.1)
        averages.start(vectors, rounds)
        errors.append(float((vectors - averages.quantise(vectors).sum(0)).square().mean()))
    assert errors[1] < errors[0] < 0.5  # k-means is better than random picks, and those are better than the mean


# ---- errors


@pytest.mark.parametrize("name", SCRIPTS)
def test_unknown_key_and_missing_data(name, script, data, tmp_path, monkeypatch, capsys):
    module = script(name)
    with pytest.raises(ValueError, match="Unknown key 'stepz' on the command line. Did you mean steps?"):
        module.main(command(name, data, tmp_path / "out", "--stepz 3"))
    recipe = yaml.safe_load((TRAIN / "configs" / f"{name}.yaml").read_text())
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(recipe | {"batches": 3}))
    with pytest.raises(ValueError, match=r"Unknown key 'batches' in .*bad.yaml. Did you mean batch"):
        module.main([str(tmp_path / "bad.yaml")])
    (tmp_path / "empty").mkdir()
    words = command(name, data, tmp_path / "out", f"--steps 2 --data {tmp_path / 'empty'}")
    monkeypatch.setattr(sys, "argv", ["script.py", *words])
    with pytest.raises(SystemExit) as stop:
        script("settings").run_script(module.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and str(tmp_path / "empty") in error


def test_arrays_that_lack_or_do_not_fit(script, data, tmp_path):
    codec_speech, soundstorm = script("codec_speech"), script("soundstorm")
    audio = np.load(data / "clips_a.npz")["audio"]
    words = command("codec_speech", tmp_path, tmp_path / "out", "--steps 2")
    cases = [
        ({}, "has no array 'phones'; it holds audio"),
        (
            {"phones": np.zeros(7, np.int8)},
            "38400 samples of int16, 7 targets; allowed: int16, 320 samples to",
        ),
        ({"audio": audio[:3200], "phones": np.zeros(10, np.int8)}, "has 10 frames, allowed 27 or more"),
        ({"phones": np.full(120, 40, np.int8)}, "Got phones from 40 to 40, allowed -1 to 39"),
    ]
    for arrays, message in cases:
        np.savez(tmp_path / "clips_x.npz", **{"audio": audio} | arrays)
        with pytest.raises(ValueError, match=message):
            codec_speech.main(words)
    (tmp_path / "clips_x.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="is no npz file"):
        codec_speech.main(words)
    words = command("soundstorm", data, tmp_path / "out", "--steps 2")
    SpeechTokenizerModel(
        SpeechTokenizerConfig(n_filters=2, dimension=8, codebook_size=8, num_codebooks=3)
    ).save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match="Got codes of 3 levels, 0 to 15; .*small has 3 levels, 0 to 7"):
        soundstorm.main([*words, "--codec", str(tmp_path / "small")])


def test_soundstorm_goes_on_from_another(script, data, tmp_path):
    """From its weights as they are: at a rate of 0 they stay. Other sizes are refused."""
    module, first, second = script("soundstorm"), tmp_path / "first", tmp_path / "second"
    module.main(command("soundstorm", data, first, "--steps 2"))
    module.main(command("soundstorm", data, second, f"--steps 1 --learning_rate 0 --start {first}"))
    old, new = (SoundStormModel.from_pretrained(folder).state_dict() for folder in (first, second))
    assert all(torch.equal(old[name], new[name]) for name in old)
    with pytest.raises(ValueError, match="has hidden_size 16, the recipe and its codes have 32"):
        module.main(command("soundstorm", data, tmp_path / "third", f"--steps 1 --start {first} --hidden_size 32"))
    assert not (tmp_path / "third" / "model.safetensors").exists()


def test_wrong_checkpoints(script, data, tmp_path):
    module, out = script("codec_music"), tmp_path / "out"
    with pytest.raises(ValueError, match="nothing to resume"):
        module.main(command("codec_music", data, out, "--steps 2 --resume"))
    module.main(command("codec_music", data, out, "--steps 2"))
    with pytest.raises(ValueError, match="holds a run already. Add --resume"):
        module.main(command("codec_music", data, out, "--steps 2"))
    settings = training(out) / "settings.yaml"
    settings.write_text(settings.read_text().replace("hidden_size: 8", "hidden_size: 16"))
    with pytest.raises(ValueError, match=r"of another run: .* is \[.*\] there, \[.*\] here"):
        module.main([str(settings), "--resume"])
    settings.write_text(settings.read_text().replace("hidden_size: 16", "hidden_size: 8"))
    (training(out) / "training.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is no state of this script"):
        module.main(command("codec_music", data, out, "--steps 2 --resume"))
    SpectralCodecModel.from_pretrained(out)  # still the good one


def test_a_run_that_diverges_leaves_the_codec_that_was_there(script, data, tmp_path):
    script("codec_music").main(command("codec_music", data, tmp_path / "good"))
    before = load_file(tmp_path / "good" / "model.safetensors")
    more = f"--work {tmp_path / 'again'} --learning_rate 1e20 --steps 9"
    words = command("codec_music", data, tmp_path / "good", more)
    with pytest.raises(ValueError, match="At step .* is nan. Lower the learning rate"):
        script("codec_music").main(words)
    after = load_file(tmp_path / "good" / "model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_codec_that_lacks_a_tensor_is_refused(script, data, tmp_path):
    shutil.copytree(data / "codec", tmp_path / "codec")
    tensors = load_file(tmp_path / "codec" / "model.safetensors")
    lost = next(key for key in tensors if "encoder" in key)
    save_file({key: value for key, value in tensors.items() if key != lost}, tmp_path / "codec" / "model.safetensors")
    words = command("codec_decoder", data, tmp_path / "out", f"--codec {tmp_path / 'codec'}")
    with pytest.raises(ValueError, match=f"lacks 1 of its tensors, {lost}"):
        script("codec_decoder").main(words)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_resumed_run_keeps_its_settings(name, script, data, tmp_path, capsys):
    """But for those that only say how long and how loud. A refusal leaves the file that it recommends as it was."""
    module, out = script(name), tmp_path / "out"
    module.main(command(name, data, out, "--steps 3"))
    kept = (training(out) / "settings.yaml").read_text()
    was = yaml.safe_load(kept)
    changes = [("learning_rate", 9.0), ("batch", 3), ("seed", 5), ("dtype", "bfloat16")]
    changes += [("frames", 131), ("heldout", 5), ("codes", 9)]
    for key, value in changes:
        if key in was:
            words = command(name, data, out, f"--steps 4 --resume --{key} {value}")
            message = (
                f"resume: {key} was {was[key]} when .*out_training was begun and is {value} now. Resume with .*/set"
            )
            with pytest.raises(ValueError, match=message):
                module.main(words)
    with pytest.raises(ValueError, match="holds 3 steps, allowed: up to the 2 that are asked for"):
        module.main(command(name, data, out, "--steps 2 --resume"))
    assert (training(out) / "settings.yaml").read_text() == kept
    capsys.readouterr()
    module.main(command(name, data, out, "--steps 4 --resume --save_every 1 --log_every 1 --minutes 9 --threads 1"))
    assert "going on after step 3 of 4" in capsys.readouterr().out
    assert yaml.safe_load((training(out) / "settings.yaml").read_text())["steps"] == 4


NUMBERS = [(name, key, 0, 1) for name in SCRIPTS for key in ("steps", "batch", "threads", "log_every", "save_every")]
NUMBERS += [(name, "steps", -5, 1) for name in SCRIPTS] + [(name, "minutes", "nan", 0) for name in SCRIPTS]
NUMBERS += [
    ("codec_image", "codes", 0, 1),
    ("codec_image", "heldout", -2, 0),
    ("codec_image", "decoder_steps", -1, 0),
    ("codec_image", "validate_every", -1, 0),
    ("codec_music", "heldout", -2, 0),
    ("codec_music", "frames", 0, 1),
    ("codec_music", "codebook_size", 0, 1),
    ("codec_music", "encoder_layers", -1, 0),
    ("codec_speech", "codebook_size", 0, 1),
    ("codec_speech", "heldout", 0, 4),
    ("codec_speech", "frames", 3, 4),
    ("codec_decoder", "heldout", 0, 4),
    ("soundstorm", "frames", 20, 126),
    ("soundstorm", "frames", 125, 126),
    ("soundstorm", "num_attention_heads", 0, 1),
]


@pytest.mark.parametrize("name, key, value, least", NUMBERS)
def test_numbers_that_can_not_be_are_refused(name, key, value, least, script, data, tmp_path):
    got = float(value) if key == "minutes" else value
    with pytest.raises(ValueError, match=f"{key}: got {got}, allowed: {least} or more"):
        script(name).main(command(name, data, tmp_path / "out", f"--steps 2 --{key}={value}"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["codec_speech", "codec_image", "codec_music"])
def test_a_codec_whose_codes_would_never_be_trained_is_refused(name, script, data, tmp_path):
    with pytest.raises(ValueError, match=r"warm: got 9, allowed: less than steps \(6\)"):
        script(name).main(command(name, data, tmp_path / "out", "--steps 6 --warm 9"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["codec_speech", "codec_decoder"])
def test_the_shortest_crops_can_be_trained_on(name, script, data, tmp_path):
    script(name).main(command(name, data, tmp_path / "out", "--steps 2 --frames 4 --heldout 4"))


def test_more_codes_than_cells_to_start_them_from_are_refused(script, data, tmp_path):
    words = "--steps 2 --batch 1 --codes"  # 21 batches of 8 x 8 cells
    with pytest.raises(ValueError, match="codes: got 1345, allowed: up to the 1344 cells of 21 batches"):
        script("codec_image").main(command("codec_image", data, tmp_path / "out", f"{words} 1345"))
    assert list(tmp_path.iterdir()) == []
    script("codec_image").main(command("codec_image", data, tmp_path / "out", f"{words} 1344"))


@pytest.mark.parametrize("bad", [b"", b"PK nothing"])
def test_clips_that_are_no_array_are_refused(bad, script, tmp_path):
    (tmp_path / "clips_0.npy").write_bytes(bad)
    with pytest.raises(ValueError, match="clips_0.npy is no npy file. Make it again"):
        script("codec_music").main(command("codec_music", tmp_path, tmp_path / "out", "--steps 2"))
    assert [path.name for path in tmp_path.iterdir()] == ["clips_0.npy"]


UNFIT = [
    {"offsets": [0, 60, 140, 200, 999]},
    {"offsets": [5, 60, 140, 200, 270]},
    {"offsets": [0, 140, 60, 200, 270]},
    {"offsets": [0, 60, 60, 200, 270]},
    {"offsets": [0]},
    {"voice": ["a", "a"]},
    {"codes": np.zeros(270, np.uint16)},
]


@pytest.mark.parametrize("wrong", UNFIT, ids=str)
def test_utterances_that_do_not_fit_are_refused(wrong, script, data, tmp_path):
    arrays = dict(np.load(data / "codes_train.npz")) | {name: np.array(value) for name, value in wrong.items()}
    np.savez(tmp_path / "codes.npz", **arrays)
    with pytest.raises(ValueError, match=r"has codes \[.*\], offsets \[.*\] and voice \[.*\], allowed: \[levels"):
        script("soundstorm").Utterances(tmp_path / "codes.npz")


def test_every_row_has_a_target_and_no_more_frames_than_asked_for(script, data):
    utterances = script("soundstorm").Utterances(data / "codes_train.npz")
    rows = [utterances.row(126) for _ in range(500)]
    assert all(prompt < len(codes) <= 126 for codes, prompt in rows)


@pytest.mark.parametrize("name", ["codec_decoder", "soundstorm"])
def test_what_is_no_speech_codec_is_refused(name, script, data, checkpoint, tmp_path):
    words = command(name, data, tmp_path / "out", f"--steps 1 --codec {checkpoint}")
    with pytest.raises(ValueError, match="holds a model of type 'anygpt', allowed: a SpeechTokenizer"):
        script(name).main(words)


def test_no_gpu_and_no_place_to_write(script, data, tmp_path, monkeypatch):
    module = script("codec_music")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch finds no GPU here"):
        module.main(command("codec_music", data, tmp_path / "out", "--device cuda"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        module.main(command("codec_music", data, tmp_path / "file" / "out"))


def test_a_full_disk_leaves_the_last_state(script, tmp_path):
    path = tmp_path / "state"

    def write(data: bytes) -> None:
        script("codec_training").write_whole(path, lambda temporary: temporary.write_bytes(data))

    write(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError):
            write(bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_settings_come_from_the_file_then_from_the_command_line(script, tmp_path):
    settings, codec_image = script("settings"), script("codec_image")
    file = str(TRAIN / "configs" / "codec_image.yaml")
    (recipe,) = settings.parse((codec_image.Recipe,), ["--data=x", *settings_of(file, codec_image.Recipe)])
    assert recipe.widths == [16, 32, 64, 96] and recipe.learning_rate == 2e-3
    for words, message in (("--steps many", "Argument --steps: invalid int value: 'many'"), ("x", "Got 'x', allowed")):
        with pytest.raises(ValueError, match=message):
            codec_image.main([file, "--data", "x", "--out", "y", *words.split()])
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="holds list, allowed: lines of `key: value`"):
        codec_image.main([str(tmp_path / "list.yaml")])


def settings_of(file: str, recipe: type) -> list[str]:
    """The lines of a YAML file that a dataclass knows, as words."""
    known = {key: value for key, value in yaml.safe_load(Path(file).read_text()).items()
             if key in recipe.__dataclass_fields__}  # fmt: skip
    return [word for key, value in known.items() for word in (f"--{key}", *str(value).strip("[]").split(", "))]


# ---- slow


@pytest.mark.slow
def test_the_speech_codec_learns(script, data, tmp_path):
    words = "--steps 60 --warm 20 --n_filters 4 --learning_rate 0.01 --log_every 10 --validate_every 60"
    script("codec_speech").main(command("codec_speech", data, tmp_path / "out", words))
    mel = [entry["mel"] for entry in losses(tmp_path / "out")]
    assert mel[-1] < 0.9 * mel[0]


@pytest.mark.slow
def test_two_processes_stay_one_model(data, tmp_path):
    """What each of two processes would save after four steps is the same, codebooks included."""
    (tmp_path / "both.py").write_text(
        f"""
import sys
sys.path.insert(0, {str(TRAIN)!r})
import codec_speech, codec_training
save = codec_training.Run._save
def tell(self, done, parts):
    save(self, done, parts)
    total = sum(float(t.double().abs().sum()) for t in codec_training.named_tensors(parts).values())
    print(f"process {{self.accelerator.process_index}} of {{self.accelerator.num_processes}}: {{total!r}}", flush=True)
codec_training.Run._save = tell
codec_speech.main(sys.argv[1:])
"""
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(tmp_path / "both.py")]
    words = [*command("codec_speech", data, tmp_path / "out", "--steps 4"), "--save_every", "4"]
    done = subprocess.run([*launch, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("process"))
    assert [line.split(":")[0] for line in lines] == ["process 0 of 2", "process 1 of 2"]
    assert lines[0].split(":")[1] == lines[1].split(":")[1]
    AutoModel.from_pretrained(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("flite") is None, reason="apt-get install flite")
def test_the_data_of_the_speech_codec(script, tmp_path):
    """Phones follow the words; a shard and one's own recordings come out in the form that training reads."""
    pytest.importorskip("pocketsphinx")
    make = script("make_codec_data")
    audio = make.to_frames(voices.say("red star", "flite_rms"))
    labels = make.align(audio, "red star")
    assert labels.shape == (len(audio) // make.HOP,)
    heard = [make.PHONES[label] for label, _ in itertools.groupby(labels) if make.PHONES[label] != "SIL"]
    assert heard == ["R", "EH", "D", "S", "T", "AA", "R"]
    assert make.PHONES[labels[-1]] == "SIL"
    (tmp_path / "mine").mkdir()
    soundfile.write(tmp_path / "mine" / "a.wav", np.sin(np.arange(44100) / 9), 44100)
    words = f"--out {tmp_path} --minutes 0.05 --voices flite_rms --workers 1 --recordings {tmp_path / 'mine'}"
    make.main(words.split())
    for name in ("flite_rms_0-0", "recordings"):
        shard = np.load(tmp_path / f"clips_{name}.npz")
        assert shard["audio"].dtype == np.int16 and len(shard["audio"]) == 320 * len(shard["phones"])
        assert (shard["phones"] >= 0).any() == (name != "recordings")
    with pytest.raises(ValueError, match="No .g722 in"):
        make.main(["--out", str(tmp_path), "--minutes", "0", "--asterisk", str(tmp_path)])
