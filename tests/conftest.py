"""Fixtures of all tests: offline, two threads, one loaded copy of the embedded checkpoint.

Another checkpoint: pytest --checkpoint DIR
"""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # tests share small helpers as plain modules (tiny_model.py)


def pytest_addoption(parser):
    default = ROOT / "modeling_anygpt" / "pretrained" / "anygpt_tiny"
    parser.addoption("--checkpoint", default=str(default), help="checkpoint folder (default: the embedded one)")


def pytest_configure(config):
    torch.set_num_threads(min(2, os.cpu_count() or 1))


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
