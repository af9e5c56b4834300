"""No reply is malformed, cut inside a frame or in a modality nobody asked for, whatever the logits say."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import (
    ASSISTANT,
    EOH,
    EOS,
    HUMAN,
    INSTRUCTION,
    PAD,
    RESPONSE,
    SPACE,
    faults,
    table,
    tiny_config,
    tiny_model,
)
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from modeling_anygpt.generation_anygpt import ModalityGrammar, ModalityPresets, resolve_request

CONFIG = tiny_config()
IMAGE, SPEECH, MUSIC = table()
NAMES = ("text", "image", "speech", "music")
SUBSETS = [s for n in range(1, 5) for s in itertools.combinations(NAMES, n)]
PROMPT = [HUMAN, 7, 8, EOH, ASSISTANT, 9]


def walk(prompt, output, required=(), budget=40, rows=16, seed=0, bias=()):
    """Replies [rows][budget] to `prompt` under the grammar, by sampling from random logits; `bias` lifts some ids."""
    random = torch.Generator().manual_seed(seed)
    grammar = ModalityGrammar(
        CONFIG, resolve_request(CONFIG, output, required, None), [EOS], len(prompt) + budget, len(prompt)
    )
    ids = torch.tensor([prompt]).repeat(rows, 1)
    grammar.check_prompt(ids[:1])
    for _ in range(budget):
        scores = torch.randn(rows, CONFIG.vocab_size, generator=random) * 3
        scores[:, list(bias)] += 6
        chances = grammar(ids, scores).softmax(-1)
        assert chances.isfinite().all(), "a row was left without a legal token"
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=random)], 1)
    return ids[:, len(prompt) :].tolist()


def check(replies, prompt, output, required=(), budget=None):
    for reply in replies:
        problems = faults(CONFIG, prompt, reply, output, required, budget)
        assert not problems, (problems, prompt, reply, output, required)


def test_the_checker_can_fail():
    image = [IMAGE.start_token_id, *[IMAGE.first_code_id] * 6, IMAGE.end_token_id]
    music = [MUSIC.start_token_id, MUSIC.token_id(0, 0), MUSIC.token_id(0, 1), MUSIC.end_token_id]
    assert not faults(CONFIG, PROMPT, [9, *image, SPACE, *music, EOS], NAMES)
    bad = {
        "codes": [image[0], *image[2:], EOS],
        "inside a frame": [*music[:2], *music[3:], EOS],
        "at code 0": [music[0], *music[2:], EOS],
        "left open": image[:4],
        "not asked for": [*image, EOS],
        "in text": [*image[1:], EOS],
        "structural": [HUMAN, EOS],
        "missing": [9, EOS],
        "transcript": [INSTRUCTION, 9, EOS],
    }
    for words, reply in bad.items():
        output = ("text", "music") if words == "not asked for" else NAMES
        required = ("image",) if words == "missing" else ()
        assert words in " ".join(faults(CONFIG, PROMPT, reply, output, required)), words
    assert faults(CONFIG, PROMPT, [7, *image, EOS], ("image",))  # text around an item


@pytest.mark.parametrize("output", SUBSETS, ids="+".join)
def test_every_subset_of_modalities(output):
    """16 rows x 40 steps x 8 requests per subset: 77,000 sampled tokens over all."""
    structure = [s for spec in table() for s in (spec.start_token_id, spec.end_token_id)] + [EOS, INSTRUCTION]
    for seed, bias in enumerate([(), structure[:6:2], structure[1:6:2], structure]):
        replies = walk(PROMPT, output, budget=40, seed=seed, bias=bias)
        check(replies, PROMPT, output, budget=40)
    items = [name for name in output if name != "text"]
    for seed, required in enumerate((items[:1], items[-1:], items)):
        check(walk(PROMPT, output, required, budget=40, seed=seed), PROMPT, output, required, budget=40)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_prompt_and_budget(data):
    """Open items of any length, transcripts, stray codes: a well-formed reply, or an error that states the budget."""
    output = data.draw(st.sampled_from(SUBSETS))
    required = data.draw(st.sets(st.sampled_from(output)))
    budget = data.draw(st.integers(1, 30))
    pieces = st.sampled_from([7, SPACE, PAD, EOH, ASSISTANT, INSTRUCTION, RESPONSE, IMAGE.first_code_id])
    prompt = data.draw(st.lists(pieces, max_size=5))
    opened = data.draw(st.sampled_from([None, *(spec for spec in table() if spec.name in output)]))
    if opened is not None:
        count = data.draw(st.integers(0, 12))
        codes = [opened.token_id(data.draw(st.integers(0, 6)), i % opened.num_codebooks) for i in range(count)]
        prompt += [opened.start_token_id, *codes]
    else:
        prompt.append(7)
    items = required - {"text"}
    try:
        replies = walk(prompt, output, tuple(items), budget, rows=4)
    except ValueError as error:
        assert "max_new_tokens=" in str(error) and "\n" not in str(error)
        need = int(str(error).split("max_new_tokens=")[1].split()[0])
        assert budget < need
        replies, budget = walk(prompt, output, tuple(items), need, rows=4), need
    for reply in replies:
        problems = faults(CONFIG, prompt, reply, output, items, budget)
        # A prompt may be malformed by itself: too many codes, or marks of a transcript that do not pair.
        problems = [p for p in problems if not p.startswith("transcript")]
        if opened is not None and count > (opened.max_frames or 99) * opened.num_codebooks:
            problems = [p for p in problems if f"{opened.name} of" not in p]
        assert not problems, (problems, prompt, reply, output, items, budget)


@pytest.mark.parametrize(
    "output", [NAMES, ("text",), ("text", "speech"), ("image",), ("speech", "music")], ids="+".join
)
def test_a_model_at_high_temperature(output):
    """Left-padded rows of unequal length, 60 tokens each, sampled at temperature 2."""
    model = tiny_model()
    rows = [[PAD, PAD, PAD, *PROMPT[-3:]], PROMPT, [PAD, HUMAN, 7, EOH, ASSISTANT, SPACE]]
    ids = torch.tensor(rows)
    torch.manual_seed(0)
    out = model.generate(
        ids,
        attention_mask=(ids != PAD).long(),
        max_new_tokens=60,
        do_sample=True,
        temperature=2.0,
        num_return_sequences=4,
        output_modalities=output,
    )
    for row, prompt in zip(out.tolist(), [r for r in rows for _ in range(4)], strict=True):
        check([row[6:]], prompt, output)
    again = model.generate(ids[1:2], max_new_tokens=60, do_sample=True, temperature=2.0, output_modalities="text")
    check([again[0, 6:].tolist()], PROMPT, ("text",))


def test_padding_and_batch_do_not_matter():
    model = tiny_model()
    rows = [PROMPT[-3:], PROMPT, [*PROMPT[:5], MUSIC.start_token_id, MUSIC.token_id(2, 0)]]
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    options = dict(max_new_tokens=24, do_sample=False, required_modalities=("speech",))
    batch = model.generate(ids, attention_mask=(ids != PAD).long(), **options)
    for row, prompt in zip(batch.tolist(), rows, strict=True):
        alone = model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
        assert row[width : width + len(alone)] == alone and set(row[width + len(alone) :]) <= {PAD}
        check([alone], prompt, NAMES, ("speech",), 24)


@pytest.mark.parametrize("output", [("text", "speech"), ("music",), ("speech", "image")], ids="+".join)
def test_beams(output):
    model = tiny_model()
    ids = torch.tensor([PROMPT, [*PROMPT[:3], EOH, ASSISTANT, SPACE]])
    out = model.generate(ids, num_beams=3, do_sample=False, max_new_tokens=20, output_modalities=output)
    check([row[6:] for row in out.tolist()], PROMPT, output)


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 0.01}], ids=str)
def test_several_sampled_beams_hold_what_is_required(narrow):
    """With one token left to each beam, those beside a finished one could only go on with illegal tokens."""
    model, options = tiny_model(), dict(num_beams=3, num_return_sequences=3, do_sample=True, max_new_tokens=20)
    for seed in range(5):
        torch.manual_seed(seed)
        out = model.generate(torch.tensor([PROMPT]), required_modalities="speech", **options, **narrow)
        check([row[6:] for row in out.tolist()], PROMPT, NAMES, ("speech",))


def test_speculation_changes_nothing():
    model = tiny_model()
    options = dict(max_new_tokens=24, do_sample=False, output_modalities=("text", "music"))
    ids = torch.tensor([[*PROMPT[:5], MUSIC.start_token_id]])
    expected = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **options), expected)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("output", [("image",), ("text", "music"), NAMES], ids="+".join)
def test_another_model_drafts(output, sampled):
    """It drafts under the grammar and the budget of the model it drafts for, not of the few tokens of a draft."""
    model, assistant = tiny_model(), tiny_model(seed=1)
    assistant.generation_config.num_assistant_tokens = 3
    options = dict(max_new_tokens=24, do_sample=sampled, output_modalities=output, required_modalities=output[-1:])
    ids = torch.tensor([PROMPT])
    out = model.generate(ids, assistant_model=assistant, **options)
    check([out[0, 6:].tolist()], PROMPT, output, output[-1:], 24)
    assert sampled or torch.equal(out, model.generate(ids, **options))


def test_embeddings_as_prompt():
    model = tiny_model()
    embeddings = model.get_input_embeddings()(torch.tensor([PROMPT]))
    out = model.generate(inputs_embeds=embeddings, max_new_tokens=20, do_sample=False, output_modalities="music")
    check(out.tolist(), [], ("music",))


def test_a_prompt_may_open_the_item():
    """The released chat model is made to speak by a start token after the last colon."""
    model = tiny_model()
    for spec in table():
        prompt = [*PROMPT, spec.start_token_id]
        new = model.generate(torch.tensor([prompt]), max_new_tokens=20, output_modalities=spec.name)[0, 7:].tolist()
        check([new], prompt, (spec.name,))
    closed = [*PROMPT[:3], MUSIC.start_token_id, MUSIC.token_id(0, 0), EOH, ASSISTANT]  # cut off in the user's turn
    check([model.generate(torch.tensor([closed]), max_new_tokens=9)[0, 7:].tolist()], PROMPT, NAMES)


def test_transcript_of_a_spoken_instruction():
    """`<-Ins-> words\\n <-Res->` opens a reply, once, and is closed before anything else comes."""
    replies = walk(PROMPT, NAMES, ("speech",), budget=20, rows=64, bias=[INSTRUCTION])
    check(replies, PROMPT, NAMES, ("speech",), 20)
    opened = [reply for reply in replies if INSTRUCTION in reply]
    assert len(opened) > 8 and all(reply.index(INSTRUCTION) < reply.index(RESPONSE) for reply in opened)
    assert all(set(reply[: reply.index(INSTRUCTION)]) <= {SPACE} for reply in opened)


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        (PROMPT, {"output_modalities": ("text", "video")}, "Unknown modality 'video'. Known: image, speech, music"),
        (PROMPT, {"output_modalities": ()}, "output_modalities is empty"),
        (PROMPT, {"output_modalities": "text", "required_modalities": "image"}, "Add them there"),
        (PROMPT, {"required_modalities": ("text", "image")}, "'text' in required_modalities, which names items"),
        (PROMPT, {"generation_mode": "video"}, "Allowed: text, image, audio, speech, music"),
        (PROMPT, {"generation_mode": "image", "output_modalities": ("speech",)}, "Drop one of the two"),
        ([*PROMPT, IMAGE.start_token_id], {"output_modalities": "text"}, "ends inside an open 'image'"),
        ([*PROMPT, IMAGE.start_token_id], {"max_new_tokens": 7}, "Set max_new_tokens=8"),
        (PROMPT, {"output_modalities": "image", "max_new_tokens": 8}, "Set max_new_tokens=9"),
        (PROMPT, {"required_modalities": ("image", "speech"), "max_new_tokens": 9}, "Set max_new_tokens=12"),
        (PROMPT, {"modality_presets": {"video": {}}}, "unknown modality 'video'"),
        (PROMPT, {"modality_presets": {"speech": {"temprature": 1}}}, "unknown keys \\['temprature'\\]"),
        (PROMPT, {"modality_presets": {"speech": {"temperature": 0}}}, "For greedy choice set do_sample=False"),
        (PROMPT, {"modality_presets": {"speech": {"temperature": float("nan")}}}, "must be positive"),
        (PROMPT, {"modality_presets": {"speech": {"top_p": "high"}}}, "Preset of 'speech': values are numbers"),
        (PROMPT, {"modality_presets": {"speech": 0.5}}, "got 0.5, need a dict of temperature"),
        (PROMPT, {"top_k": -1}, "a whole one \\(0: off\\)"),
        (PROMPT, {"top_k": 2.5}, "a whole one \\(0: off\\)"),
        (PROMPT, {"eos_token_id": -1}, "rows of the vocabulary, 0..99"),
    ],
)
def test_contradictions_are_one_line_errors(prompt, options, words):
    with pytest.raises(ValueError, match=words) as error:
        tiny_model().generate(torch.tensor([prompt]), **{"max_new_tokens": 20} | options)
    assert "\n" not in str(error.value)


def test_the_stated_budget_is_enough():
    model = tiny_model()
    for options in ({"output_modalities": "image", "max_new_tokens": 9}, {"output_modalities": "music"}):
        new = model.generate(torch.tensor([PROMPT]), **{"max_new_tokens": 5} | options)[0, 6:].tolist()
        check([new], PROMPT, (options["output_modalities"],))


def test_a_limit_beyond_any_budget_is_none():
    config = tiny_config()
    config.modalities = [dataclasses.replace(s, max_seconds=s.frame_rate and 1e300) for s in config.modalities]
    model = tiny_model()
    model.config = config
    new = model.generate(torch.tensor([PROMPT]), max_new_tokens=30, output_modalities="music")[0, 6:].tolist()
    assert not faults(config, PROMPT, new, ("music",), ("music",), 30)


def test_generation_mode_of_the_pipeline():
    model = tiny_model()
    for mode, allowed in (("text", ("text",)), ("image", ("image",)), ("audio", ("speech", "music"))):
        new = model.generate(torch.tensor([PROMPT]), generation_mode=mode, max_new_tokens=30)[0, 6:].tolist()
        check([new], PROMPT, allowed)
        items = sum(token == spec.start_token_id for token in new for spec in table())
        assert (mode != "text") <= items <= len(set(allowed) - {"text"})
    both = dict(generation_mode="audio", output_modalities=("text", "music"), max_new_tokens=30)
    check([model.generate(torch.tensor([PROMPT]), **both)[0, 6:].tolist()], PROMPT, ("text", "music"), ("music",))


def test_ids_beyond_the_embedding_are_an_error():
    config = tiny_config()
    config.text_config.vocab_size = 80
    with pytest.raises(ValueError, match="resize_token_embeddings"):
        ModalityGrammar(config, resolve_request(config, None, None, None), [EOS], 10)


def test_no_other_processor_undoes_the_grammar():
    class Lift(LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores[:, IMAGE.start_token_id] += 1e9
            return scores

    model = tiny_model()
    options = dict(max_new_tokens=12, output_modalities=("text", "speech"))
    out = model.generate(torch.tensor([PROMPT]), logits_processor=LogitsProcessorList([Lift()]), **options)
    check([out[0, 6:].tolist()], PROMPT, ("text", "speech"))


@pytest.mark.parametrize("sampled", [False, True])
def test_processors_that_leave_nothing_legal_give_way(sampled):
    model, ids = tiny_model(), torch.tensor([PROMPT])
    codes = [[IMAGE.first_code_id + code] for code in range(IMAGE.codebook_size)]
    for options in ({"min_new_tokens": 15}, {"suppress_tokens": [EOS]}, {"bad_words_ids": codes}):
        out = model.generate(ids, max_new_tokens=20, do_sample=sampled, output_modalities="image", **options)
        check([out[0, 6:].tolist()], PROMPT, ("image",), budget=20)


@pytest.mark.parametrize("output", [None, ("image", "music"), ("text", "speech")])
def test_no_step_waits_for_the_device(output):
    """Meta tensors hold no data: anything that reads a value on the host raises."""
    required = None if output is None else output[-1:]
    presets = [{"temperature": 0.5 + i, "top_k": 5, "top_p": 0.5, "repetition_penalty": 1.1} for i in range(4)]
    sampling = ModalityPresets(presets, True)
    grammar = ModalityGrammar(CONFIG, resolve_request(CONFIG, output, required, None), [EOS], 50, 6, presets=sampling)
    for owner in (grammar, sampling):
        for name, value in vars(owner).items():
            if isinstance(value, torch.Tensor):
                setattr(owner, name, value.to("meta"))
    for length in (6, 7, 30, 49):
        ids = torch.zeros(3, length, dtype=torch.long, device="meta")
        assert grammar(ids, torch.zeros(3, 100, device="meta")).shape == (3, 100)


SAMPLING = {"temperature": 0.7, "top_k": 9, "top_p": 0.6, "repetition_penalty": 1.3}


@pytest.mark.parametrize("keys", [("temperature",), ("top_k",), ("top_p",), ("repetition_penalty",), tuple(SAMPLING)])
def test_equal_presets_equal_transformers(keys):
    torch.manual_seed(0)
    scores, ids = torch.randn(5, 60) * 4, torch.randint(0, 60, (5, 12))
    scores[:, 20:30] = float("-inf")
    values = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0} | {k: SAMPLING[k] for k in keys}
    expected = scores.clone()
    for key, processor in (
        ("repetition_penalty", RepetitionPenaltyLogitsProcessor),
        ("temperature", TemperatureLogitsWarper),
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
    ):
        expected = processor(SAMPLING[key])(ids, expected) if key in keys else expected
    seen = ModalityPresets([values] * 4, True)(ids, scores, torch.tensor([0, 1, 2, 3, 1]))
    assert torch.allclose(seen, expected) and (seen != scores).any()


def test_presets_switch_with_the_modality():
    neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    presets = [neutral | {"top_k": 1}, neutral, neutral | {"top_k": 3}, neutral | {"top_p": 0.01, "temperature": 2.0}]
    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    kept = ModalityPresets(presets, True)(torch.zeros(4, 1).long(), scores, torch.arange(4)).isfinite().sum(1)
    assert kept.tolist() == [1, 50, 3, 1]
    assert torch.equal(ModalityPresets(presets, False)(torch.zeros(4, 1).long(), scores, torch.arange(4)), scores)


def test_presets_in_generate(tmp_path):
    """Text greedy, speech sampled, by the checkpoint's own generation_config.json; a direct argument rules over it."""
    model = tiny_model()
    model.generation_config = GenerationConfig(
        do_sample=True,
        max_new_tokens=24,
        eos_token_id=EOS,
        pad_token_id=PAD,
        modality_presets={"text": {"top_k": 1}, "speech": {"temperature": 3.0}},
        output_modalities=["text", "speech"],
    )
    model.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = torch.tensor([PROMPT]).repeat(12, 1)
    torch.manual_seed(0)
    assert len({tuple(row) for row in model.generate(prompt, output_modalities="text").tolist()}) == 1
    replies = model.generate(prompt, required_modalities="speech")[:, 6:].tolist()
    check(replies, PROMPT, ("text", "speech"), ("speech",))
    assert len({tuple(reply) for reply in replies}) > 3
    greedy = model.generate(prompt, required_modalities="speech", top_k=1)
    assert len({tuple(row) for row in greedy.tolist()}) == 1
    own = GenerationConfig(do_sample=True, top_k=1, max_new_tokens=24, eos_token_id=EOS, pad_token_id=PAD)
    assert torch.equal(model.generate(prompt, own, required_modalities="speech"), greedy)


def test_continuous_batching_is_refused():
    with pytest.raises(ValueError, match="generate_batch runs without the grammar"):
        tiny_model().generate_batch([PROMPT], max_new_tokens=4)


def test_the_end_of_a_reply_is_no_text_where_another_token_ends_it():
    options = {"eos_token_id": 7, "sequence_bias": [[[EOS], 99.0]], "output_modalities": "text"}
    out = tiny_model().generate(torch.tensor([PROMPT]), max_new_tokens=20, **options)
    assert EOS not in out[0, 6:].tolist()


def test_generate_without_a_table_is_plain():
    model = tiny_model()
    model.config.modalities = []
    options = dict(max_new_tokens=10, do_sample=False)
    assert model.generate(torch.tensor([PROMPT]), **options).shape[1] <= 16
    with pytest.raises(ValueError, match="modality table"):
        model.generate(torch.tensor([PROMPT]), output_modalities=("text",), **options)


def test_a_vocabulary_without_transcripts():
    """The released base model has no tokens for spoken instructions."""
    model = tiny_model()
    model.config.instruction_token_id = model.config.response_token_id = None
    prompt = torch.tensor([PROMPT])
    torch.manual_seed(0)
    output = model.generate(prompt, output_modalities=("text", "image"), do_sample=True, max_new_tokens=30)
    assert not faults(model.config, PROMPT, output[0, len(PROMPT) :].tolist(), ("text", "image"), (), 30)


def test_every_text_token_of_the_embedded_checkpoint_may_be_written(model, processor):
    """`!` is the tokenizer's first byte, and was taken for the BOS that a LLaMA has by default."""
    chat, options = [{"role": "user", "content": "what is your name"}], {"tokenize": True, "return_tensors": "pt"}
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True, **options)
    marks = set(processor.tokenizer.added_tokens_decoder)
    text = [i for i in range(len(processor.tokenizer)) if i not in marks]
    eos = [model.config.eos_token_id]
    grammar = ModalityGrammar(
        model.config, resolve_request(model.config, "text", None, None), eos, 99, prompt.shape[1]
    )
    legal = grammar(prompt, torch.zeros(1, model.config.vocab_size))[0].isfinite()
    assert legal[text].all() and 0 < len(text) - 500 < 20
