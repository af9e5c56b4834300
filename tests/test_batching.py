"""Padding and cutting rows of ids: as transformers' tokenizers do it."""

import numpy as np
import pytest
import torch
from PIL import Image
from processing_tools import make_processor, tone

from processing_anygpt.batching import Batching

TEXTS = ["draw a big red circle", "hear", "please draw what you hear"]
OPTIONS = [
    {},
    {"padding": True},
    {"padding": "longest", "pad_to_multiple_of": 8},
    {"padding": "max_length", "max_length": 40},
    {"padding": "max_length", "max_length": 40, "pad_to_multiple_of": 16},
    {"padding": "max_length", "max_length": 3},
    {"padding": "do_not_pad"},
    {"padding": False, "truncation": True, "max_length": 4},
    {"padding": True, "truncation": "longest_first", "max_length": 4},
    {"padding": True, "truncation": "do_not_truncate", "max_length": 4},
    {"padding": "max_length", "truncation": True, "max_length": 7, "padding_side": "right"},
]


@pytest.fixture
def processor():
    return make_processor()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_as_transformers_tokenizers_do_it(processor, side, options):
    tokenizer = processor.tokenizer
    tokenizer.padding_side = tokenizer.truncation_side = side
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    made = Batching(**options).collate({"input_ids": [list(row) for row in rows]}, tokenizer)
    wanted = tokenizer(TEXTS, **({"padding": True} | options))
    assert {key: made[key] for key in made} == {key: wanted[key] for key in ("input_ids", "attention_mask")}


def test_labels_and_masks_go_along(processor):
    chats = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": text}] for text in TEXTS]
    options = dict(tokenize=True, return_dict=True, return_labels=True, return_assistant_tokens_mask=True)
    more = {"padding": "max_length", "max_length": 60, "padding_side": "right", "return_tensors": "pt"}
    batch = processor.apply_chat_template(chats, **options, processor_kwargs=more)
    assert {tuple(value.shape) for value in batch.values()} == {(3, 60)}
    assert torch.equal(batch["assistant_masks"], (batch["labels"] != -100).long())
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    learned = processor.tokenizer.decode(batch["input_ids"][0][batch["assistant_masks"][0] == 1])
    assert learned == f" {TEXTS[0]}<eos>"
    cut = processor.apply_chat_template(chats, truncation=True, max_length=9, **options)
    assert [len(row) for row in cut["labels"]] == [9, 9, 9]


BAD = {
    "two widths": ({"padding": False, "return_tensors": "pt"}, "Got rows of .* ids for one tensor. Pad them"),
    "no such padding": ({"padding": "wide"}, "wide is not a valid PaddingStrategy"),
    "no such side": ({"padding_side": "top"}, "padding_side='top', allowed: 'left', 'right'"),
    "nothing left": ({"truncation": True, "max_length": 0}, "max_length=0, allowed: 1 or more"),
    "no limit": ({"truncation": True}, "knows no longest row. Pass max_length"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options(processor, case):
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        processor(text=TEXTS, **options)


def test_bad_options_of_conversations(processor):
    chat = [{"role": "user", "content": "hi"}]
    with pytest.raises(ValueError, match="Unknown processor option 'widen'. Known: padding, truncation"):
        processor.apply_chat_template(chat, tokenize=True, processor_kwargs={"widen": 1})
    for more in ({"tools": [{}]}, {"documents": [{}]}, {"chat_template": "{{ messages }}"}):
        with pytest.raises(ValueError, match="knows no tools, documents or other chat templates"):
            processor.apply_chat_template(chat, **more)
    assert processor.apply_chat_template(chat, processor.chat_template, [], None, True).endswith("[MMGPT]:")


def test_the_rate_of_arrays_may_be_said_once(processor):
    chat = [{"role": "user", "content": [{"type": "audio", "audio": tone(0.5, 3200)}]}]
    with pytest.raises(ValueError, match="without its sampling rate"):
        processor.apply_chat_template(chat, tokenize=True)
    chat[0]["content"][0]["sampling_rate"] = 3200
    wanted = processor.apply_chat_template(chat, tokenize=True)
    del chat[0]["content"][0]["sampling_rate"]
    assert processor.apply_chat_template(chat, tokenize=True, processor_kwargs={"sampling_rate": 3200}) == wanted


def test_several_media_as_arrays_and_tuples(processor):
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    wanted = processor(text=["a", "b"], images=pictures)["input_ids"]
    stack = np.stack([np.asarray(picture) for picture in pictures])
    for several in (tuple(pictures), stack, torch.tensor(stack)):
        assert processor(text=["a", "b"], images=several)["input_ids"] == wanted
    sound = (tone(0.5, 1600), 1600)
    assert processor(text="a", speech=sound)["input_ids"] == processor(text=["a"], speech=[sound])["input_ids"]
