"""A saved model works in a process that has none of our packages (trust_remote_code=True)."""

import json
import os
import subprocess
import sys

import torch
from tiny_model import ASSISTANT, EOH, HUMAN, faults, tiny_model

SCRIPT = """
import importlib.util, sys, torch
assert importlib.util.find_spec("modeling_anygpt") is None
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM
folder, ids = sys.argv[1], torch.tensor([eval(sys.argv[2])])
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).modality("music").num_codebooks == 2
for auto in (AutoModelForCausalLM, AutoModelForMultimodalLM, AutoModelForImageTextToText):
    model = auto.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
    print(model.generate(ids, max_new_tokens=20, do_sample=False, output_modalities=("text", "music"),
                         required_modalities=("music",)).tolist())
model.save_pretrained(folder + "/again")
AutoModelForCausalLM.from_pretrained(folder + "/again", trust_remote_code=True)
"""


def test_remote_code(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "saved")
    stored = json.loads((tmp_path / "saved" / "config.json").read_text())
    pipelines = {"AutoModelForMultimodalLM", "AutoModelForImageTextToText"}
    assert set(stored["auto_map"]) == {"AutoConfig", "AutoModelForCausalLM", *pipelines}
    assert {path.name for path in (tmp_path / "saved").glob("*.py")} == {
        "configuration_anygpt.py",
        "modeling_anygpt.py",
        "generation_anygpt.py",
    }
    prompt = [HUMAN, 7, 8, EOH, ASSISTANT, 9]
    # -S: an editable installation of this repository puts its finder there, PYTHONPATH alone brings the libraries.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if "site-packages" in path),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-S", "-c", SCRIPT, str(tmp_path / "saved"), str(prompt)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    ours = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=20,
        do_sample=False,
        output_modalities=("text", "music"),
        required_modalities=("music",),
    ).tolist()
    assert result.stdout.strip().splitlines()[-2:] == [str(ours)] * 2
    assert not faults(model.config, prompt, ours[0][6:], ("text", "music"), ("music",))
