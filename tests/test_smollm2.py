"""A real pretrained model, SmolLM2-135M-Instruct, still answers as before once it is grown (`make smollm2`)."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from serving_anygpt.grow import init

QUESTIONS = {
    "What is the capital of France?": "Paris",
    "Name three colours.": "Red",
    "Write one sentence about a cat.": "cat",
}


@pytest.mark.slow
def test_text_answers_are_unchanged(request, tmp_path):
    files = sorted(Path(request.config.getoption("--smollm2")).glob("*.gguf"))
    if not files:
        pytest.skip("needs SmolLM2: make smollm2, or --smollm2 FOLDER")
    init(str(files[0]), str(tmp_path / "grown"), quiet=True)
    grown = AutoModelForCausalLM.from_pretrained(tmp_path / "grown").eval()
    assert not hasattr(grown.config.text_config, "quantization_config")  # a trainer would refuse it
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "grown").tokenizer
    source = {"pretrained_model_name_or_path": files[0].parent, "gguf_file": files[0].name}
    stock, old = AutoModelForCausalLM.from_pretrained(**source).eval(), AutoTokenizer.from_pretrained(**source)
    for question, word in QUESTIONS.items():
        prompt = old.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        inputs = old(prompt, return_tensors="pt")
        assert tokenizer(prompt)["input_ids"] == inputs["input_ids"][0].tolist()
        greedy = dict(do_sample=False, max_new_tokens=32)
        before = stock.generate(**inputs, **greedy)
        after = grown.generate(**inputs, **greedy, output_modalities=("text",))
        assert torch.equal(before, after)
        with torch.inference_mode():  # of the whole conversation, prompt and answer
            assert torch.equal(grown(before).logits[..., : len(old)], stock(before).logits)
        answer = tokenizer.decode(after[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        print(f"{question} -> {answer}")
        assert word in answer
