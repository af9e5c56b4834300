"""A saved processor works in a process that has none of our packages (trust_remote_code=True), codecs included."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from processing_tools import make_processor, tone

from modeling_anygpt.codecs import SpeechTokenizerConfig, SpeechTokenizerModel
from processing_anygpt.media import load_audio

SCRIPT = """
import importlib.util, sys
assert importlib.util.find_spec("processing_anygpt") is None and importlib.util.find_spec("modeling_anygpt") is None
from transformers import AutoProcessor
folder = sys.argv[1]
processor = AutoProcessor.from_pretrained(folder + "/saved", trust_remote_code=True)
sound = {"type": "speech", "path": folder + "/in.wav"}
message = {"role": "user", "content": [sound, {"type": "text", "text": "<eoh>"}]}
ids = processor.apply_chat_template([message], tokenize=True, add_generation_prompt=True)
print(ids)
processor.parse_output(processor.apply_chat_template([message], tokenize=True)[3:])[0].save(folder + "/out.wav")
processor.save_pretrained(folder + "/again")
"""


def test_remote_code(tmp_path):
    processor = make_processor()
    processor.shelf.models.clear()
    torch.manual_seed(0)
    config = SpeechTokenizerConfig(
        sampling_rate=1600, strides=[8, 4], n_filters=4, dimension=16, semantic_dimension=16, codebook_size=64
    )
    codec = SpeechTokenizerModel(config).eval()
    speech = processor.specs[1]
    speech.decoder = processor.modalities[1]["decoder"] = None  # the codec alone
    processor.shelf.own.clear()
    processor.set_codec("speech", codec)
    processor.save_pretrained(tmp_path / "saved")
    soundfile.write(tmp_path / "in.wav", tone(0.5, 8000), 8000)
    site = [path for path in sys.path if "site-packages" in path]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(site),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-S", "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    message = {"role": "user", "content": [{"type": "speech", "path": tmp_path / "in.wav"}]}
    message["content"].append({"type": "text", "text": "<eoh>"})
    ours = processor.apply_chat_template([message], tokenize=True, add_generation_prompt=True)
    assert result.stdout.strip().splitlines()[-1] == str(ours)
    part = processor.parse_output(processor.apply_chat_template([message], tokenize=True)[3:])[0]
    np.testing.assert_allclose(load_audio(tmp_path / "out.wav", 1600), np.clip(part.waveform, -1, 1), atol=1e-3)
    for folder in ("saved", "again"):  # what was loaded as remote code can be saved and shared on
        files = {path.name for path in Path(tmp_path / folder).iterdir()}
        assert {"processing_anygpt.py", "conversation.py", "vocabulary.py", "chat_template.jinja"} <= files
        assert (tmp_path / folder / "speech_codec" / "speech_tokenizer.py").exists()
