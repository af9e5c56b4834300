"""TRL's own trainers with nothing of ours but the model and its processor, as its users start them."""

import pytest
import torch
from training_tools import EMBEDDED
from transformers import AutoModelForCausalLM, AutoProcessor

trl = pytest.importorskip("trl")
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from PIL import Image  # noqa: E402

QUESTION = {"role": "user", "content": "what is your name"}
ANSWERS = [{"role": "assistant", "content": text} for text in ("my name is any gpt", "a big red circle")]
TALK = [{"messages": [QUESTION, ANSWERS[0]]}] * 4
SEEN = [{"type": "image"}, {"type": "text", "text": "what do you see"}]
SAID = {"role": "assistant", "content": [{"type": "text", "text": "a big red circle"}]}
PICTURES = [{"messages": [{"role": "user", "content": SEEN}, SAID], "images": [Image.new("RGB", (64, 64))]}] * 4
PAIRS = [{"prompt": [QUESTION], "chosen": [ANSWERS[0]], "rejected": [ANSWERS[1]]}] * 4


def settings(kind: type, folder, **more):
    rest = dict(max_steps=2, per_device_train_batch_size=2, use_cpu=True, bf16=False, report_to="none")
    return kind(output_dir=str(folder), logging_steps=1, save_strategy="no", **rest, **more)


@pytest.mark.parametrize("only_answers", [False, True])
def test_conversations(only_answers, tmp_path):
    """With nothing said TRL loads the processor itself. Learned is what `return_labels` marks, or everything."""
    arguments = settings(trl.SFTConfig, tmp_path, assistant_only_loss=only_answers, learning_rate=0.0)
    trainer = trl.SFTTrainer(str(EMBEDDED), args=arguments, train_dataset=Dataset.from_list(TALK))
    row = trainer.train_dataset[0]
    processor = AutoProcessor.from_pretrained(EMBEDDED)
    options = dict(tokenize=True, return_dict=True, return_labels=True)
    wanted = processor.apply_chat_template(TALK[0]["messages"], **options)
    assert row["input_ids"] == wanted["input_ids"][0]
    assert row["labels"] == wanted["labels" if only_answers else "input_ids"][0]
    trainer.train()
    batch = {key: torch.tensor([row[key]]) for key in ("input_ids", "labels")}
    with torch.no_grad():
        loss = AutoModelForCausalLM.from_pretrained(EMBEDDED)(**batch).loss
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(loss), rel=1e-3)


def test_pictures_and_an_adapter(tmp_path):
    trainer = trl.SFTTrainer(
        str(EMBEDDED),
        args=settings(trl.SFTConfig, tmp_path, max_length=None),
        train_dataset=Dataset.from_list(PICTURES),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    processor = AutoProcessor.from_pretrained(EMBEDDED)
    blocks = [{"type": "image", "image": PICTURES[0]["images"][0]}, SEEN[1]]
    wanted = processor.apply_chat_template([{"role": "user", "content": blocks}, SAID], tokenize=True)
    assert batch["input_ids"].tolist() == [wanted, wanted]
    trainer.train()
    assert trainer.state.global_step == 2


def test_preferences(tmp_path):
    arguments = settings(trl.DPOConfig, tmp_path)
    trainer = trl.DPOTrainer(str(EMBEDDED), args=arguments, train_dataset=Dataset.from_list(PAIRS))
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.693, abs=0.01)  # log 2: nothing is preferred yet


def test_rewards_want_the_tokenizer(tmp_path):
    """With a processor TRL's GRPOTrainer expects a model that reads pictures by a placeholder token."""
    trainer = trl.GRPOTrainer(
        str(EMBEDDED),
        reward_funcs=lambda completions, **_: [float(len(str(reply))) for reply in completions],
        args=settings(trl.GRPOConfig, tmp_path, num_generations=2, max_completion_length=6),
        train_dataset=Dataset.from_list([{"prompt": [QUESTION]}] * 4),
        processing_class=AutoProcessor.from_pretrained(EMBEDDED).tokenizer,
    )
    trainer.train()
    assert trainer.state.global_step == 2
