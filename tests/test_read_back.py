"""The best of several replies, chosen by the model itself."""

import copy
import random

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from processing_anygpt import generate_best
from processing_anygpt.read_back import longest, made_and_asked, read_back, request_text
from processing_anygpt.tiny_world import language, pictures

QUESTION = language.READ_BACK


def prompt(processor, *texts: str) -> dict:
    turns = [[{"role": "user", "content": text}] for text in texts]
    return dict(
        processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    )


def test_the_right_picture_reads_best(model, processor):
    """Of eight pictures, each request is told most surely from its own: words and pictures never seen in training."""
    rng = random.Random(5)
    captions = [language.sample(kind, rng, held_out=True) for kind in ("pair", "row") * 4]
    codes = processor.encode_media("image", [pictures.draw(language.parse_scene(c), rng) for c in captions])
    requests = [f"draw {caption}" for caption in captions]
    count = len(captions)
    pairs = [(codes[j], requests[i]) for i in range(count) for j in range(count)]
    scores = read_back(model, processor, "image", *map(list, zip(*pairs, strict=True)), QUESTION)
    assert scores.shape == (count * count,) and (scores < 0).all()
    assert (scores.view(count, count).argmax(1) == torch.arange(count)).sum() >= count - 1


def test_scores_do_not_depend_on_the_batch(model, processor):
    codes = processor.encode_media("image", [pictures.draw(language.parse_scene("a big red circle"), None)])
    alone = read_back(model, processor, "image", codes, ["draw a big red circle"], QUESTION)
    texts = ["draw a big red circle", "draw a small blue star above a big green heart"]
    beside = read_back(model, processor, "image", codes * 2, texts, QUESTION)
    assert torch.allclose(alone[0], beside[0], atol=1e-3)


def test_the_best_of_the_samples_is_kept(model, processor):
    requests = ["draw a big red circle", "show me a small blue star above a big green heart"]
    inputs = prompt(processor, *requests)
    options = {"output_modalities": ("image",), "max_new_tokens": 70, "temperature": 1.2, "top_k": 0}
    torch.manual_seed(1)
    samples = model.generate(**inputs, **options, num_return_sequences=4, do_sample=True)
    torch.manual_seed(1)
    best = generate_best(model, processor, **inputs, **options, candidates=4, instruction=QUESTION)
    assert best.shape[0] == 2
    start = inputs["input_ids"].shape[1]
    for row, group, request in zip(best, samples.view(2, 4, -1), requests, strict=True):
        codes = [processor.parse_output(sample[start:])[0].codes for sample in group]
        scene = request.removeprefix("draw ").removeprefix("show me ")  # no picture tells how it was asked for
        scores = read_back(model, processor, "image", codes, [scene] * 4, QUESTION)
        chosen = next(i for i, sample in enumerate(group) if torch.equal(row, sample[: len(row)]))
        assert scores[chosen] > scores.max() - 1e-3  # two may be told as surely, but for the rounding of the batch


def test_one_candidate_is_generate(model, processor):
    inputs = prompt(processor, "draw a big red circle", "draw a small blue star above a big green heart")
    options = {"output_modalities": ("image",), "max_new_tokens": 70}
    torch.manual_seed(2)
    expected = model.generate(**inputs, **options)
    torch.manual_seed(2)
    assert torch.equal(generate_best(model, processor, **inputs, **options, candidates=1), expected)


def test_what_is_asked_for(processor):
    """The words that a reply has to answer: typed, heard, or its own where it speaks."""
    codes = {"image": np.arange(64)[None], "speech": np.arange(9)[None]}

    def reply(*blocks):
        messages = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": [{"codes": codes.get(b["type"]), **b} for b in blocks]},
        ]
        prompt = processor.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=True)
        return processor.apply_chat_template(messages, tokenize=True)[len(prompt) :]

    heard, said = {"type": "transcript", "text": "say good night"}, {"type": "text", "text": "good night"}
    image, speech = {"type": "image"}, {"type": "speech"}
    cases = [
        (reply(image), "image", "draw a star", "draw a star"),
        (reply(heard, image), "image", "", "say good night"),
        (reply(said, image), "image", "draw a star", "draw a star"),
        (reply(heard, said, speech), "speech", "", "good night"),
        (reply(heard, speech), "speech", "typed", "say good night"),
        (reply(image), "image", "", None),
    ]
    for ids, modality, request, expected in cases:
        made, asked = made_and_asked(ids, request, modality, processor)
        assert np.array_equal(made, codes[modality]) and asked == expected
    wordings = ["read", "say", "read this aloud"]
    for ids, request in (
        (reply(heard, speech), ""),
        (reply(speech), "say good night"),
        (reply(speech), "Say: good night"),
    ):
        assert made_and_asked(ids, request, "speech", processor, wordings)[1] == "good night"
    assert made_and_asked(reply(speech), "sayings", "speech", processor, wordings)[1] == "sayings"
    assert made_and_asked(reply(said), "draw a star", "image", processor) == (None, None)
    words = [block for word in ("good", "night") for block in ({"type": "text", "text": word}, speech)]
    made, asked = made_and_asked(reply(*words), "typed", "speech", processor)  # said word by word
    assert np.array_equal(made, np.tile(codes["speech"], 2)) and asked == "good night"
    asked = made_and_asked(reply(*words), "Read this aloud good night all", "speech", processor, wordings)[1]
    assert asked == "good night all"  # a reply that ends too early is not told better for it

    messages = [{"role": "user", "content": "earlier"}, {"role": "assistant", "content": "yes"}]
    content = [{"type": "speech", "codes": codes["speech"]}, {"type": "text", "text": "say: good night"}]
    messages.append({"role": "user", "content": content})
    ids = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    assert request_text(ids, processor) == "say: good night"
    assert request_text([], processor) == ""


def test_a_generation_config_that_is_given_stays_as_it_is_and_gives_the_same(model, processor):
    own = copy.deepcopy(model.generation_config)
    options = {"output_modalities": ("image",), "candidates": 2}
    replies = []
    for given in ({}, {"generation_config": own}):
        torch.manual_seed(0)
        replies.append(generate_best(model, processor, **prompt(processor, "draw a star"), **options, **given))
    assert torch.equal(*replies) and own.num_return_sequences == model.generation_config.num_return_sequences


def test_settings_are_looked_up_as_generate_does(model, processor):
    """In the options, then the generation config that is given, then the checkpoint's."""
    inputs = prompt(processor, "draw a star")
    config = GenerationConfig(max_new_tokens=70, do_sample=True, required_modalities=["image"])
    replies = []
    for options in (
        {"output_modalities": ("text", "image"), "candidates": 16},
        {"output_modalities": ("text", "image")},
    ):
        torch.manual_seed(0)
        replies.append(generate_best(model, processor, **inputs, **options, generation_config=config))
    assert torch.equal(*replies)
    config = GenerationConfig(max_new_tokens=70, do_sample=True, output_modalities=["text"])
    best = generate_best(model, processor, **inputs, generation_mode="image", generation_config=config, candidates=2)
    assert best[0, inputs["input_ids"].shape[1] :].tolist().count(model.config.modality("image").end_token_id) == 1
    config.num_beams = 2
    with pytest.raises(ValueError, match="num_beams does not go"):
        generate_best(model, processor, **inputs, generation_mode="image", generation_config=config)


def test_padding_after_the_longest_reply_is_cut():
    replies = torch.tensor([[5, 9, 0, 0], [5, 6, 9, 0]])
    assert longest(replies, 9) == longest(replies, [8, 9]) == 3
    assert longest(torch.tensor([[5, 9, 9, 9], [5, 9, 9, 9]]), 9) == 2  # padded with what ends a reply
    assert longest(torch.tensor([[5, 9, 0, 0], [5, 6, 7, 8]]), 9) == 4  # one was stopped


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"candidates": 0}, "candidates=0, need a whole number, 1 or more"),
        ({"candidates": 1.5}, "candidates=1.5, need a whole number"),
        ({"candidates": 2, "output_modalities": ("text",)}, "nothing but text"),
        ({"candidates": 2, "required_modalities": ("image", "music"), "output_modalities": None}, "image and music"),
        ({"candidates": 2, "num_beams": 2}, "num_beams does not go"),
        ({"candidates": 2, "instruction": ""}, "Pass instruction"),
    ],
)
def test_errors(model, processor, options, words, monkeypatch):
    monkeypatch.setattr(model.generation_config, "read_back", None, raising=False)
    with pytest.raises(ValueError, match=words):
        defaults = {"output_modalities": ("image",), "instruction": QUESTION, "max_new_tokens": 70}
        generate_best(model, processor, **prompt(processor, "draw a star"), **defaults | options)


def test_command(anygpt, files):
    code, output, _ = anygpt(["generate", "--to", "image", "--candidates", "2", "draw a big red circle"])
    assert (code, output) == (0, "answer.png\n")
    for wrong, words in (("--to text --candidates 2 x", "not for --to text"), ("--to image --candidates 65 x", "64")):
        code, _, error = anygpt(f"generate {wrong}")
        assert code == 2 and words in error and error.count("\n") == 1
