"""A synthetic release with the released vocabularies, through the command line and the Auto classes, to media and back
(slow). `pytest -m slow -s` prints the peak memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from official_release import EMBEDDING_WIDTH, LLAMA_PIECES, make_release
from PIL import Image
from tiny_model import faults
from transformers import AutoModelForCausalLM, AutoProcessor, GenerationConfig

import processing_anygpt  # noqa: F401  registers the classes
from processing_anygpt import ImagePart, MusicPart, SpeechPart

HIDDEN_SIZE = 512  # makes an embedding large enough to tell its memory from the rest
ROWS = {"base": LLAMA_PIECES + 17418, "chat": LLAMA_PIECES + 17420}
TARGETS = {"speech": SpeechPart, "image": ImagePart, "music": MusicPart}

# Runs the command and prints three sizes in MiB: resident before, at the highest, and what the tensors of the largest
# shard take. VmHWM, not getrusage's ru_maxrss, which begins with the peak of the process that started this one.
MEASURE = """
import sys
import torch, diffusers, transformers
import sentencepiece
from serving_anygpt import cli, convert
from transformers import EncodecModel, LlamaTokenizer
from diffusers import StableUnCLIPImg2ImgPipeline

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))

torch.set_num_threads(1)
before = status("VmRSS")
code = cli.main(sys.argv[1:])
print(before, status("VmHWM"))
sys.exit(code)
"""


@pytest.fixture(scope="module", params=["base", "chat"])
def converted(request, tmp_path_factory):
    """-> kind, folder of the model, (resident memory before, peak, largest shard), in MiB."""
    folder = tmp_path_factory.mktemp(request.param)
    words = make_release(folder, request.param == "chat", HIDDEN_SIZE)
    largest = max(path.stat().st_size for path in (folder / "llm").glob("*.bin")) / 2**20
    out = folder / "out"
    process = subprocess.run(
        [sys.executable, "-c", MEASURE, "convert", *words, str(out)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    before, peak = map(float, process.stdout.splitlines()[-1].split())
    return request.param, out, (before, peak, largest)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    tone = 0.3 * np.sin(np.arange(24000) * 0.05) + 0.02 * np.random.default_rng(0).standard_normal(24000)
    soundfile.write(folder / "tone.wav", tone, 44100)
    picture = Image.new("RGB", (80, 50), "white")
    picture.paste("red", (20, 10, 44, 40))
    picture.save(folder / "red.png")
    return {
        "speech": {"type": "speech", "path": str(folder / "tone.wav")},
        "music": {"type": "music", "path": str(folder / "tone.wav")},
        "image": {"type": "image", "path": str(folder / "red.png")},
        "text": {"type": "text", "text": "a red square"},
    }


@pytest.mark.slow
def test_peak_memory_is_under_twice_the_largest_shard(converted, capsys):
    kind, _, (before, peak, largest) = converted
    with capsys.disabled():
        print(f"\n{kind}: {before:.0f} MiB before, peak {peak:.0f} MiB, largest shard {largest:.0f} MiB")
    assert peak - before < 2 * largest


@pytest.mark.slow
def test_every_modality_answers_every_other(converted, inputs, tmp_path):
    """From a wav, a png and a text to each modality: whole items by an independent reading of the ids, and files."""
    kind, folder, _ = converted
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    assert model.config.vocab_size == len(processor.tokenizer) == ROWS[kind]
    assert (model.config.instruction_token_id is None) == (kind == "base")
    assert not model.lm_head.weight.is_meta and model.lm_head.weight.shape == (ROWS[kind], HIDDEN_SIZE)
    for source, block in inputs.items():
        messages = [{"role": "user", "content": [block, {"type": "text", "text": "What is it?"}]}]
        prompt = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        length = prompt["input_ids"].shape[1]
        for target in ["text", *TARGETS]:
            torch.manual_seed(1)
            output = model.generate(**prompt, output_modalities=(target,), max_new_tokens=60)[0]
            new = output[length:].tolist()
            eos = (processor.tokenizer.eos_token_id,)  # LLaMA's own
            problems = faults(model.config, output[:length].tolist(), new, (target,), (), 60, eos)
            assert not problems, (source, target, problems)
            parts = processor.parse_output(output[length:])
            if target == "text":
                assert all(part.modality in ("text", "transcript") for part in parts)
                continue
            assert [type(part) for part in parts] == [TARGETS[target]]
            path = parts[0].save(tmp_path / f"{source}_{target}{'.png' if target == 'image' else '.wav'}")
            if target == "image":
                assert Image.open(path).size == parts[0].image.size
            else:
                samples, rate = soundfile.read(path)
                assert rate == parts[0].sampling_rate and len(samples) == round(parts[0].seconds * rate) > 0


@pytest.mark.slow
def test_presets_of_the_paper_can_be_chosen(converted):
    _, folder, _ = converted
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    prompt = processor(text="[Human]: hello<eoh> [MMGPT]:", allow_control_tokens=True, return_tensors="pt")
    beams = GenerationConfig.from_pretrained(folder, "generation_config_paper_text.json")
    beams.max_new_tokens = 8
    output = model.generate(**prompt, generation_config=beams)
    again = model.generate(**prompt, generation_config=beams)
    assert torch.equal(output, again)  # beam search draws nothing
    assert all(part.modality in ("text", "transcript") for part in processor.parse_output(output[0, -8:]))
    sampling = GenerationConfig.from_pretrained(folder, "generation_config_paper.json")
    sampling.max_new_tokens = 40
    output = model.generate(**prompt, generation_config=sampling, output_modalities=("image",))
    assert len(processor.parse_output(output[0, prompt["input_ids"].shape[1] :])) == 1


@pytest.mark.slow
def test_embeddings_of_the_image_codec_fit_the_painter(converted, inputs):
    """The two come from different releases; the width of the embedding is what they have in common."""
    _, folder, _ = converted
    processor = AutoProcessor.from_pretrained(folder)
    (codes,) = processor.encode_media("image", [inputs["image"]])
    assert codes.shape == (1, 32) and processor.codec("image").config.embedding_size == EMBEDDING_WIDTH
    (part,) = processor.decode_codes("image", [codes], steps=2, generator=torch.Generator().manual_seed(0))
    assert np.asarray(part.image).std() > 0
