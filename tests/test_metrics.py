"""Every metric equals its public reference, loaded as a user loads it: `evaluate.load(folder)`, offline.

The references' scores of fixed inputs are in goldens/metrics (made by its make.py), so that the fast tests need none
of their packages.
"""

import importlib.util
import json
from pathlib import Path

import evaluate
import numpy as np
import pytest
import soundfile
import soxr
import tiny_judges
import torch
from PIL import Image
from transformers import AutoFeatureExtractor, AutoTokenizer, ClapModel, WavLMForXVector, WavLMModel

from processing_anygpt.judging import ptb
from processing_anygpt.judging.embeddings import windows
from processing_anygpt.judging.scores import bootstrap, compare, frechet_distance, mean_interval

METRICS = Path(__file__).parent.parent / "eval" / "metrics"
GOLDENS = Path(__file__).parent / "goldens" / "metrics"
NAMES = sorted(path.name for path in METRICS.iterdir() if path.is_dir())


def load(name: str) -> evaluate.Metric:
    return evaluate.load(str(METRICS / name))


def golden(name: str) -> dict:
    return json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))


def needs(package: str, why: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: {why}")


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    """Folder with clip/, clap/ and wavlm/, tiny and untrained."""
    folder = tmp_path_factory.mktemp("judges")
    for build in (tiny_judges.clip, tiny_judges.clap, tiny_judges.wavlm):
        build(folder / build.__name__)
    return folder


def refusal(call) -> str:
    with pytest.raises(ValueError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize("normaliser", ["none", "basic", "whisper_english"])
@pytest.mark.parametrize("name", ["wer", "cer"])
def test_error_rates_equal_jiwer(name, normaliser):
    stored = golden("errors")
    expected = stored["scores"][normaliser]
    said, heard = zip(*stored["pairs"], strict=True)
    result = load(name).compute(predictions=heard, references=said, normaliser=normaliser)
    assert result[name] == pytest.approx(expected[name], abs=1e-12)
    assert result["items"] == pytest.approx(expected[f"{name}_items"], abs=1e-12)
    assert result[name] == pytest.approx(np.average(result["items"], weights=result["weights"]), abs=1e-12)
    assert result["low"] < result[name] < result["high"]
    json.dumps(result)


def test_the_normaliser_equals_the_package_of_its_own():
    """Both normalisers, text by text: transformers' class with the spellings of the wheel."""
    from processing_anygpt.judging.normalisers import normaliser

    stored = golden("errors")
    for name in ("basic", "whisper_english"):
        write = normaliser(name)
        for side, key in enumerate(("references", "predictions")):
            assert [write(pair[side]) for pair in stored["pairs"]] == stored["scores"][name][key]


def test_spellings_of_a_checkpoint(tmp_path):
    (tmp_path / "normalizer.json").write_text('{"shew": "show"}')
    texts = {"predictions": ["the big show"], "references": ["the big shew"]}
    options = {"normaliser": "whisper_english", "spelling": str(tmp_path / "normalizer.json")}
    assert load("wer").compute(**texts, **options)["wer"] == 0
    assert load("wer").compute(**texts, normaliser="whisper_english")["wer"] == pytest.approx(1 / 3)
    (tmp_path / "list.json").write_text('["shew"]')
    options["spelling"] = str(tmp_path / "list.json")
    assert "holds a JSON list" in refusal(lambda: load("wer").compute(**texts, **options))
    assert "gone.json" in refusal(
        lambda: load("wer").compute(**texts, normaliser="whisper_english", spelling="gone.json")
    )


def test_error_rates_refuse_what_they_cannot_divide_by():
    wer = load("wer")
    message = refusal(lambda: wer.compute(predictions=["a", "b"], references=["a", "[noise]"], normaliser="basic"))
    assert "Reference 1 ('[noise]')" in message
    assert "'lower'" in refusal(lambda: wer.compute(predictions=["a"], references=["a"], normaliser="lower"))


# ---------------------------------------------------------------- captions


def test_cider_equals_pycocoevalcap():
    stored = golden("captions")
    said, meant = zip(*stored["captions"], strict=True)
    result = load("cider").compute(predictions=said, references=meant)
    assert result["cider"] == pytest.approx(stored["cider"], abs=1e-9)
    assert result["items"] == pytest.approx(stored["cider_items"], abs=1e-9)
    assert result["low"] < result["cider"] < result["high"]
    tokens_said, tokens_meant = zip(*stored["tokens"], strict=True)
    result = load("cider").compute(predictions=tokens_said, references=tokens_meant, tokenizer="none")
    assert result["items"] == pytest.approx(stored["cider_items"], abs=1e-9)


@needs("pycocoevalcap", "compared with stored scores instead")
def test_cider_equals_pycocoevalcap_here_and_now():
    """Random captions of a small vocabulary: repeats, empty ones, many references."""
    from pycocoevalcap.cider.cider import Cider

    draw = np.random.RandomState(3)
    words = ["w" + str(i) for i in range(12)]

    def caption():
        return " ".join(draw.choice(words, draw.randint(0, 14)))

    said = [caption() for _ in range(40)]
    meant = [[caption() for _ in range(draw.randint(1, 6))] for _ in said]
    score, items = Cider().compute_score(dict(enumerate(meant)), {i: [text] for i, text in enumerate(said)})
    result = load("cider").compute(predictions=said, references=meant, tokenizer="none")
    assert result["cider"] == pytest.approx(score, abs=1e-9)
    assert result["items"] == pytest.approx(items, abs=1e-9)


def test_tokens_equal_the_java_tokenizer():
    cut = golden("ptb")["sentences"]
    assert {text: " ".join(ptb.tokens(text)) for text in cut} == {text: " ".join(cut[text].split()) for text in cut}


def test_bleu_equals_sacrebleu_and_the_coco_server():
    stored = golden("captions")
    said, meant = zip(*stored["captions"], strict=True)
    result = load("bleu").compute(predictions=said, references=meant, resamples=100)
    assert result["bleu"] == pytest.approx(stored["sacrebleu"], abs=1e-9)
    assert result["items"] == pytest.approx(stored["sacrebleu_items"], abs=1e-9)
    assert result["low"] <= result["bleu"] <= result["high"]
    tokens_said, tokens_meant = zip(*stored["tokens"], strict=True)
    result = load("bleu").compute(predictions=tokens_said, references=tokens_meant, tokenizer="none", resamples=10)
    assert result["bleu"] == pytest.approx(100 * stored["coco_bleu"][3], abs=1e-6)


def test_captions_need_references_and_a_known_tokenizer():
    for name in ("cider", "bleu"):
        assert "without references" in refusal(
            lambda name=name: load(name).compute(predictions=["a"], references=[[]])
        )
        assert "'nltk'" in refusal(
            lambda name=name: load(name).compute(predictions=["a"], references=[["a"]], tokenizer="nltk")
        )


# ---------------------------------------------------------------- pictures


def test_clip_scores_equal_torchmetrics(judges, tmp_path):
    stored = golden("clip")
    pictures = [tiny_judges.picture(i) for i in range(4)]
    options = {"checkpoint": str(judges / "clip"), "batch_size": 3}
    result = load("clip_score").compute(predictions=pictures, references=tiny_judges.CAPTIONS, **options)
    assert 100 * np.array(result["items"]) == pytest.approx(stored["text"], abs=1e-3)
    assert result["clip_score"] == pytest.approx(np.mean(stored["text"]) / 100, abs=1e-5)

    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    result = load("clip_i").compute(predictions=paths[:3], references=paths[1:], **options)
    assert 100 * np.array(result["items"]) == pytest.approx(stored["next_image"], abs=1e-3)
    files = [Path(path).read_bytes() for path in paths]
    same = load("clip_i").compute(predictions=pictures, references=files, **options)
    assert same["items"] == pytest.approx([1] * 4, abs=1e-6) and same["clip_i"] > result["clip_i"]


@pytest.mark.parametrize("case", ["more vectors than dimensions", "fewer"])
def test_frechet_distance_equals_scipy_and_torchmetrics(case):
    stored = golden("frechet")["cases"][case]
    distance = frechet_distance(stored["first"], stored["second"])
    assert distance == pytest.approx(stored["scipy"], rel=1e-7)
    assert distance == pytest.approx(stored["torchmetrics"], rel=1e-7)
    assert frechet_distance(stored["first"], stored["first"]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["fid", "frechet_audio_distance"])
def test_distances_of_given_features(name):
    stored = golden("frechet")["cases"]["more vectors than dimensions"]
    first, second = stored["first"][:30], stored["second"]
    result = load(name).compute(predictions=first, references=second)
    assert result[name] == pytest.approx(frechet_distance(first, second), rel=1e-12)
    assert 0 <= result["low"] < result[name] < result["high"] and "items" not in result
    again = load(name).compute(predictions=first, references=second)
    assert again == result


def test_fid_of_pictures_by_a_vision_model_and_by_a_torchscript_file(judges, tmp_path):
    made, real = ([tiny_judges.picture(i) for i in side] for side in (range(6), range(10, 16)))
    result = load("fid").compute(predictions=made, references=real, checkpoint=str(judges / "clip"))
    same = load("fid").compute(predictions=made, references=made, checkpoint=str(judges / "clip"))
    assert same["fid"] == pytest.approx(0, abs=1e-5) and result["fid"] > 0.01

    torch.jit.script(MeanColours()).save(str(tmp_path / "inception.pt"))
    by_script = load("fid").compute(predictions=made, references=real, checkpoint=str(tmp_path / "inception.pt"))
    colours = [[np.asarray(picture).reshape(-1, 3).mean(0) for picture in side] for side in (made, real)]
    assert by_script["fid"] == pytest.approx(frechet_distance(*colours), rel=1e-4)
    assert "checkpoint" in refusal(lambda: load("fid").compute(predictions=made, references=real))


class MeanColours(torch.nn.Module):
    """Called as the TorchScript files of Inception-v3 are."""

    def forward(self, pixels: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return pixels.float().mean(dim=[2, 3])


# ---------------------------------------------------------------- sounds


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """(paths, waveforms at 16 kHz) of 1.5, 4 and 16 s."""
    folder = tmp_path_factory.mktemp("sounds")
    waves = [tiny_judges.sound(i, seconds, 16_000) for i, seconds in enumerate((1.5, 4, 16))]
    for i, wave in enumerate(waves):
        soundfile.write(folder / f"{i}.wav", wave, 16_000, subtype="FLOAT")
    return [str(folder / f"{i}.wav") for i in range(3)], waves


def test_clap_score_equals_the_model_itself(judges, sounds):
    """Against ClapModel's own forward pass, clip by clip, without our batches and windows."""
    paths, waves = sounds
    folder = judges / "clap"
    model = ClapModel.from_pretrained(folder).eval()
    extractor, tokenizer = AutoFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    expected = []
    for wave, text in zip(waves[:2], tiny_judges.CAPTIONS, strict=False):
        features = extractor(soxr.resample(wave, 16_000, 8000), sampling_rate=8000, return_tensors="pt")
        words = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            output = model(input_features=features["input_features"], is_longer=torch.tensor([[False]]), **words)
            expected.append(float(output.logits_per_text / model.logit_scale_t.exp()))
    options = {"checkpoint": str(folder), "batch_size": 2}
    result = load("clap_score").compute(predictions=paths, references=tiny_judges.CAPTIONS[:3], **options)
    assert result["items"][:2] == pytest.approx(expected, abs=1e-5)
    given = load("clap_score").compute(
        predictions=waves, references=tiny_judges.CAPTIONS[:3], sampling_rate=16_000, **options
    )
    assert given == result  # two windows of the third too: nothing is drawn at random


def test_windows_hold_all_of_a_sound_but_a_short_rest():
    wave = np.arange(26)
    assert [list(piece) for piece in windows(wave, 10)] == [list(range(10)), list(range(10, 20)), list(range(20, 26))]
    assert [len(piece) for piece in windows(wave[:24], 10)] == [10, 10]
    assert [len(piece) for piece in windows(wave[:3], 10)] == [3]


def test_speaker_similarity_equals_the_model_itself(judges, sounds):
    """As the documentation of WavLMForXVector scores two recordings."""
    paths, waves = sounds
    model = WavLMForXVector.from_pretrained(judges / "wavlm").eval()
    extractor = AutoFeatureExtractor.from_pretrained(judges / "wavlm")
    with torch.no_grad():
        vectors = [model(**extractor(wave, sampling_rate=16_000, return_tensors="pt")).embeddings[0] for wave in waves]
    cosine = torch.nn.CosineSimilarity(dim=-1)
    expected = [float(cosine(vectors[0], vectors[1])), float(cosine(vectors[1], vectors[2]))]
    metric, checkpoint = load("speaker_similarity"), str(judges / "wavlm")
    result = metric.compute(predictions=paths[:2], references=paths[1:], checkpoint=checkpoint)
    assert result["items"] == pytest.approx(expected, abs=1e-6)
    silent = [np.zeros(16_000, np.float32), waves[0]]
    mixed = metric.compute(predictions=silent, references=paths[:2], checkpoint=checkpoint, sampling_rate=16_000)
    assert mixed["items"][0] == 0 and mixed["items"][1] == pytest.approx(expected[0], abs=1e-6)


@needs("resemblyzer", "`make eval-deps` installs it")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_speaker_similarity_equals_resemblyzer():
    import resemblyzer

    folder = METRICS.parent.parent / "examples"
    files = [str(folder / name) for name in ("voice_slt.wav", "voice_rms.wav")]
    encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)
    first, second = (encoder.embed_utterance(resemblyzer.preprocess_wav(file)) for file in files)
    result = load("speaker_similarity").compute(predictions=files[:1], references=files[1:], checkpoint="resemblyzer")
    assert result["speaker_similarity"] == pytest.approx(float(first @ second), abs=1e-4)
    silence = load("speaker_similarity").compute(
        predictions=[np.zeros(16_000)], references=files[1:], checkpoint="resemblyzer", sampling_rate=16_000
    )
    assert silence["speaker_similarity"] == 0


@needs("speechmos", "pip install -e .[eval]")
def test_dnsmos_equals_speechmos():
    expected = golden("dnsmos")["scores"]
    wave = tiny_judges.sound(0, 9.1, 16_000)  # one window of the model
    result = load("dnsmos").compute(predictions=[wave], sampling_rate=16_000)
    assert result["dnsmos"] == pytest.approx(expected["ovrl_mos"], abs=1e-3)
    assert result["signal"] == pytest.approx([expected["sig_mos"]], abs=1e-3)
    assert result["background"] == pytest.approx([expected["bak_mos"]], abs=1e-3)
    assert result["p808"] == pytest.approx([expected["p808_mos"]], abs=1e-3)


def test_frechet_audio_distance_of_sounds(judges, sounds):
    """By CLAP, two windows of the long sound; and by the mean of another model's frames."""
    paths, waves = sounds
    made, real = paths[:2], paths[1:]
    by_clap = load("frechet_audio_distance").compute(
        predictions=made, references=real, checkpoint=str(judges / "clap"), resamples=3
    )
    assert by_clap["frechet_audio_distance"] > 0
    model = WavLMModel.from_pretrained(judges / "wavlm").eval()
    extractor = AutoFeatureExtractor.from_pretrained(judges / "wavlm")
    with torch.no_grad():
        frames = [
            model(**extractor(piece, sampling_rate=16_000, return_tensors="pt")).last_hidden_state.mean(1)[0].numpy()
            for wave in waves
            for piece in windows(wave, 160_000)
        ]
    result = load("frechet_audio_distance").compute(
        predictions=made, references=real, checkpoint=str(judges / "wavlm"), resamples=3
    )
    assert result["frechet_audio_distance"] == pytest.approx(frechet_distance(frames[:2], frames[1:]), rel=1e-3)


def test_a_judge_that_is_not_there(sounds, tmp_path):
    paths, _ = sounds
    message = refusal(
        lambda: load("clap_score").compute(predictions=paths[:1], references=["a"], checkpoint=str(tmp_path / "clap"))
    )
    assert str(tmp_path / "clap") in message and "no such folder" in message
    message = refusal(
        lambda: load("clip_i").compute(
            predictions=[Image.new("RGB", (8, 8))], references=[Image.new("RGB", (8, 8))], checkpoint=str(tmp_path)
        )
    )
    assert "Can't load the judge" in message


# ---------------------------------------------------------------- intervals


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_says_what_it_takes(name):
    if name == "dnsmos":
        pytest.importorskip("speechmos", reason="speechmos is not installed: pip install -e .[eval]")
    info = load(name).info
    assert "predictions:" in info.inputs_description and "Returns:" in info.inputs_description
    assert f"`{name}`" in (METRICS.parent / "README.md").read_text()


def test_interval_of_a_mean_is_the_textbook_one():
    items = np.random.RandomState(0).standard_normal(400) * 3 + 1
    score, low, high = mean_interval(items, resamples=2000)
    reach = 1.96 * items.std(ddof=1) / 20
    assert score == pytest.approx(items.mean())
    assert [low, high] == pytest.approx([score - reach, score + reach], abs=0.1 * reach)
    assert mean_interval(items, resamples=2000) == (score, low, high)
    assert mean_interval(items, resamples=2000, seed=1) != (score, low, high)
    narrow = mean_interval(items, resamples=2000, level=0.5)
    assert low < narrow[1] < score < narrow[2] < high
    assert mean_interval([0.5]) == (0.5, 0.5, 0.5)


def test_interval_of_a_ratio_weighs_items():
    score, low, high = mean_interval([0.0, 1.0], [3, 1])
    assert score == 0.25 and (low, high) == (0, 1)
    drawn = bootstrap(lambda chosen: float(chosen.mean()), 10, resamples=50, seed=0)
    assert drawn.shape == (50,) and 3 < drawn.mean() < 6
    for bad in ([], [float("nan")]):
        assert "one finite number" in refusal(lambda bad=bad: mean_interval(bad))
    for weight in (0, float("nan"), float("inf")):
        assert "above 0" in refusal(lambda weight=weight: mean_interval([1.0, 2.0], [1, weight]))
    assert "between 0 and 1" in refusal(lambda: mean_interval([1.0], level=95))


def test_comparison_is_paired():
    draw = np.random.RandomState(1)
    hard = draw.standard_normal(200) * 10  # how hard an item is, for both
    worse, better = hard + draw.standard_normal(200) * 0.1, hard + 0.2 + draw.standard_normal(200) * 0.1
    result = compare(better, worse)
    assert result["difference"] == pytest.approx(0.2, abs=0.03)
    assert 0.1 < result["low"] < result["high"] < 0.3 and result["p"] < 0.01
    assert compare(worse, worse)["p"] == 1
    alike = compare(worse, hard + draw.standard_normal(200) * 0.1)
    assert alike["low"] < 0 < alike["high"] and alike["p"] > 0.05
    assert "the same items" in refusal(lambda: compare([1.0], [1.0, 2.0]))
