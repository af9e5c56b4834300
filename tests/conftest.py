"""Fixtures of all tests: offline, one thread, one loaded copy of the embedded checkpoint.

Another checkpoint: pytest --checkpoint DIR
"""

import importlib
import io
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from serving_anygpt import cli

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # tests share small helpers as plain modules (tiny_model.py)


def pytest_addoption(parser):
    default = ROOT / "modeling_anygpt" / "pretrained" / "anygpt_tiny"
    parser.addoption("--checkpoint", default=str(default), help="checkpoint folder (default: the embedded one)")
    parser.addoption("--smollm2", default=str(ROOT / "data" / "smollm2"), help="folder of `make smollm2` (slow tests)")
    parser.addoption("--vllm-env", default=str(ROOT / ".venv-vllm"), help="folder of `make vllm-env` (slow tests)")


def pytest_configure(config):
    # The models are small: a second thread gains little, and on a busy machine the two wait for each other.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(request) -> str:
    """Folder of the checkpoint that end-to-end tests use."""
    return request.config.getoption("--checkpoint")


@pytest.fixture(scope="session")
def model(checkpoint):
    """The language model, in eval mode, shared: a test that changes it works on a copy."""
    from transformers import AutoModelForCausalLM

    import processing_anygpt  # noqa: F401  registers the classes

    return AutoModelForCausalLM.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="session")
def processor(checkpoint):
    """The processor with its lazily loaded codecs, shared."""
    from transformers import AutoProcessor

    import processing_anygpt  # noqa: F401

    return AutoProcessor.from_pretrained(checkpoint)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def files(tmp_path):
    """A folder with one good and some bad files of each kind."""
    tone = 0.3 * np.sin(np.arange(16000) * 0.05).astype(np.float32)
    soundfile.write(tmp_path / "tone.wav", tone, 16000)
    picture = Image.new("RGB", (64, 64), "white")
    picture.paste("red", (20, 20, 44, 44))
    picture.save(tmp_path / "red.png")
    (tmp_path / "words.txt").write_text("good morning\n", encoding="utf-8")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "noise.wav").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "noise.png").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "cut.png").write_bytes((tmp_path / "red.png").read_bytes()[:60])
    (tmp_path / "table.xlsx").write_bytes(b"PK")
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin-1"))
    (tmp_path / "cut.wav").write_bytes((tmp_path / "tone.wav").read_bytes()[:9000])
    (tmp_path / "long.txt").write_text("a big red star " * 495)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "seeing").mkdir()
    (tmp_path / "seeing" / "config.json").write_text('{"modalities": [{"name": "image"}]}')
    (tmp_path / "other_model").mkdir()
    (tmp_path / "other_model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "broken_model").mkdir()
    (tmp_path / "broken_model" / "config.json").write_text("{")
    return tmp_path


@pytest.fixture
def anygpt(files, checkpoint, monkeypatch, capsys):
    """Runs the command in the folder of `files`: (exit code, standard output, standard error)."""
    monkeypatch.chdir(files)

    def run(arguments: str | list[str], stdin: str = "") -> tuple[int, str, str]:
        words = arguments.split() if isinstance(arguments, str) else arguments
        if words and not words[0].startswith("-") and "--model" not in words:
            words = [words[0], "--model", checkpoint, *words[1:]]
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            code = cli.main(words)
        except SystemExit as stop:
            code = stop.code
        output, error = capsys.readouterr()
        return code, output, error

    return run


@pytest.fixture
def scripts(monkeypatch):
    """A function that imports a script of train/ by its plain name, as running it by path does."""
    monkeypatch.syspath_prepend(ROOT / "train")
    return importlib.import_module


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Path:
    """A checkpoint and rows to train on: `make_workshop`."""
    from training_tools import make_workshop  # needs the extra [train]

    return make_workshop(tmp_path_factory.mktemp("training"))
