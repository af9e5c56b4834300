"""The paper's protocols, end to end in miniature: layouts of the real data, learned judges with random weights."""

import sys
from pathlib import Path

import datasets
import miniatures
import pytest
import tiny_judges
import torch
import yaml
from tiny_whisper import whisper

sys.path.insert(0, str(Path(__file__).parent.parent / "eval"))

import protocol  # noqa: E402
import run  # noqa: E402
import tables  # noqa: E402

import examples  # noqa: E402

ITEMS = 2
# What the judges of each protocol leave in a record.
FIELDS = {
    "asr": set(),
    "tts": {"heard", "similarity"},
    "image_captioning": set(),
    "text_to_image": {"clip_score", "clip_i"},
    "music_captioning": {"clap_score"},
    "text_to_music": {"clap_score"},
    "speech_chat": {"heard", "similarity"},
}


class MeanColours(torch.nn.Module):
    """Stands for Inception: pictures [B, 3, S, S] -> means of their colours [B, 3]."""

    def forward(self, pictures: torch.Tensor, return_features: bool = True) -> torch.Tensor:
        return pictures.float().mean((2, 3))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The data sets' folders, as the protocols name them."""
    root = tmp_path_factory.mktemp("data")
    miniatures.librispeech(root)
    miniatures.vctk(root / "VCTK-Corpus-0.92")
    miniatures.coco(root / "coco")
    miniatures.musiccaps(root / "musiccaps")
    miniatures.tone(root / "question.wav", 3, 16_000)
    rows = [{"audio": str(root / "question.wav"), "text": f"question {i}"} for i in (1, 2)]
    table = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"test": table}).save_to_disk(root / "spoken_questions")
    return root


@pytest.fixture(scope="module")
def judges(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("judges")
    whisper(folder / "openai" / "whisper-medium")
    tiny_judges.wavlm(folder / "microsoft" / "wavlm-base-plus-sv")
    tiny_judges.clip(folder / "openai" / "clip-vit-large-patch14")
    tiny_judges.clap(folder / "laion" / "clap-htsat-unfused")
    (folder / "inception").mkdir()
    torch.jit.script(MeanColours()).save(str(folder / "inception" / "inception-2015-12-05.pt"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("task", FIELDS)
def test_protocol_runs_to_its_rows(task, data, judges, checkpoint, tmp_path):
    content = yaml.safe_load((protocol.FOLDER / "paper" / f"{task}.yaml").read_text())
    content["data"].pop("items", None)
    if "sample" in content["data"]:
        content["data"]["sample"]["count"] = ITEMS
    content["decoding"] |= {"max_new_tokens": 80}
    content["judges"] = [judge for judge in content.get("judges", []) if judge["judge"] != "dnsmos"]  # not in dev
    content["rows"] = [row for row in content["rows"] if row.get("field") != "quality"]
    (tmp_path / f"{task}.yaml").write_text(yaml.safe_dump(content))
    words = ["--task", task, "--protocols", tmp_path, "--data", data, "--judges", judges, "--out", tmp_path / "out"]
    run.main([*map(str, words), "--cpu", "--limit", str(ITEMS), "--model", checkpoint])
    ((_, (result,)),) = [(name, list(each.values())) for name, each in tables.load([tmp_path / "out"]).items()]
    assert [row["name"] for row in result["rows"]] == [row["name"] for row in content["rows"]]
    assert [set(item["judged"]) for item in result["items"]] == [FIELDS[task]] * ITEMS
    learned = protocol.read(tmp_path / f"{task}.yaml").checkpoints
    assert {name: len(judge["fingerprint"]) for name, judge in result["judges"].items()} == dict.fromkeys(learned, 64)
    assert len(result["deviations"]) == 1 + len(learned)  # few items, and judges of no revision that the paper's name


@pytest.mark.parametrize("task, count", [("asr", 9), ("image_captioning", 2), ("text_to_image", 6)])
def test_an_incomplete_data_set_is_refused(task, count, data):
    """The miniatures are: they have fewer items than the archives."""
    with pytest.raises(ValueError, match=rf"paper/{task}: .* holds {count} items, .* has \d+\. Unpack"):
        examples.load(protocol.read(protocol.FOLDER / "paper" / f"{task}.yaml"), data)
