"""eval/checkpoints.py: which revision of a learned judge lies there, and what a result file says of it."""

import hashlib
import re
import sys
from pathlib import Path

import pytest
from huggingface_hub._local_folder import write_download_metadata

sys.path.insert(0, str(Path(__file__).parent.parent / "eval"))

import checkpoints  # noqa: E402
import protocol  # noqa: E402

JUDGE, COMMIT = "org/judge", "a" * 40
PAPER = sorted((protocol.FOLDER / "paper").glob("*.yaml"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Of judges: one as `hf download --local-dir` leaves it, and a file."""
    (tmp_path / JUDGE).mkdir(parents=True)
    for name, content in (("config.json", "{}"), ("model.safetensors", "weights"), ("README.md", "words")):
        (tmp_path / JUDGE / name).write_text(content)
        write_download_metadata(tmp_path / JUDGE, name, COMMIT, "etag")
    (tmp_path / "inception.pt").write_bytes(b"script")
    return tmp_path


def wanted(**judge) -> protocol.Protocol:
    """A protocol with one judge."""
    return protocol.Protocol("set/asr", "asr", "", {}, [], [], judges=[{"judge": "x", **judge}])


def test_revision_and_fingerprint_are_those_of_the_files(folder):
    (found,) = checkpoints.identify(wanted(checkpoint=JUDGE), folder).values()
    assert found["revision"] == COMMIT and len(found["fingerprint"]) == 64
    (file,) = checkpoints.identify(wanted(checkpoint="inception.pt"), folder).values()
    assert file["revision"] == file["fingerprint"] == hashlib.sha256(b"script").hexdigest()


@pytest.mark.parametrize("name, moves", [("model.safetensors", True), ("vocab.txt", True), ("README.md", False)])
def test_the_fingerprint_is_of_what_is_loaded(folder, name, moves):
    before = checkpoints.fingerprint(folder / JUDGE)
    (folder / JUDGE / name).write_text("other")
    checkpoints.fingerprint.cache_clear()
    assert (checkpoints.fingerprint(folder / JUDGE) != before) == moves


def test_mixed_or_copied_folders_have_no_revision(folder):
    write_download_metadata(folder / JUDGE, "config.json", "b" * 40, "etag")
    assert checkpoints.revision(folder / JUDGE) is None
    (folder / "copied").mkdir()
    assert checkpoints.revision(folder / "copied") is None


def test_another_judge_than_the_protocols_is_a_deviation(folder):
    def said(versions=None, **judge):
        asked = wanted(**judge)
        return checkpoints.deviations(asked, checkpoints.identify(asked, folder), versions or {})

    assert said(checkpoint=JUDGE, revision=COMMIT) == said(checkpoint=JUDGE) == said(checkpoint="resemblyzer") == []
    assert said(checkpoint=JUDGE, revision="c" * 40) == [f"judge {JUDGE} of revision {COMMIT}, not {'c' * 40}"]
    both = {"revision": "basic-pitch 0.4.0, librosa 0.11.0", "versions": {"basic-pitch": "0.4.0", "librosa": "0.10.0"}}
    assert said(**both) == ["judge librosa 0.10.0, not 0.11.0"]
    assert said(revision="speechmos 0.0.1.1") == ["judge speechmos None, not 0.0.1.1"]


def test_a_missing_judge_is_said_with_its_revision(tmp_path):
    with pytest.raises(ValueError, match=f"hf download {JUDGE} --revision {COMMIT} --local-dir"):
        checkpoints.checkpoint(JUDGE, tmp_path, COMMIT)
    with pytest.raises(ValueError, match=r"put the file there .* sha256 abc"):
        checkpoints.checkpoint("inception.pt", tmp_path, "abc")


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_papers_protocols_pin_their_judges(path):
    content = protocol.read(path)
    assert all(re.fullmatch("[0-9a-f]{40}([0-9a-f]{24})?", str(pin)) for pin in content.checkpoints.values())
    assert all("checkpoint" in judge or judge["revision"] for judge in content.judges)
