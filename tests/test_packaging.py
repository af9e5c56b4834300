"""What the wheel installs, and that the command starts at once."""

import re
import shutil
import subprocess
import sys
import time
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from serving_anygpt import __version__

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> list[str]:
    """Names in a wheel built from this repository."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, because the build leaves folders behind; `train`, `eval` and `tests` are in it and must stay out.
    parts = ["modeling_anygpt", "processing_anygpt", "serving_anygpt", "train", "eval", "tests"]
    for name in parts:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", str(folder), str(folder / "source")], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    assert path.name == f"anygpt_hf-{__version__}-py3-none-any.whl"
    return zipfile.ZipFile(path).namelist()


def test_wheel_installs_exactly_our_packages(wheel):
    top = {name.split("/")[0] for name in wheel} - {f"anygpt_hf-{__version__}.dist-info"}
    assert top == {"modeling_anygpt", "processing_anygpt", "serving_anygpt"}


def test_wheel_holds_every_module_and_every_checkpoint_file(wheel):
    for package in ("modeling_anygpt", "processing_anygpt", "serving_anygpt"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
                assert path.relative_to(ROOT).as_posix() in wheel


def test_wheel_declares_the_command(wheel):
    assert f"anygpt_hf-{__version__}.dist-info/entry_points.txt" in wheel
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["options.entry_points"]["console_scripts"].strip() == "anygpt = serving_anygpt.cli:main"


def test_constraints_pin_every_dependency_of_every_extra():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed = config["options"]["install_requires"].split("\n")
    for extra in config["options.extras_require"].values():
        needed += extra.split("\n")
    pinned = {normal(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    names = {normal(re.split(r"[<>=\[ ]", line.strip())[0]) for line in needed if line.strip()[:1] not in ("", "#")}
    assert names - pinned == set()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_help_starts_in_a_second_without_torch():
    probe = "import sys; from serving_anygpt.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    probe += "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules); sys.exit(bool(heavy))"
    best = float("inf")
    for _ in range(3):  # the fastest of three: a busy machine is not our slowness
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
        best = min(best, time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert "generate" in done.stdout
    assert best < 1.0
