"""Records to training rows: instructions, what is learned, and what is rejected for which reason."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preparation_tools import MEDIA, grey, learned, prepare, sound, words
from processing_tools import make_processor

from processing_anygpt import preparation
from processing_anygpt.conversation import IGNORED
from processing_anygpt.instructions import choose, load_instructions
from processing_anygpt.parts import parse


@pytest.fixture(scope="module")
def fake():
    """A processor with exact codecs: sound at 1600 Hz, speech of 50 codes a second, music of 2 x 25."""
    return make_processor()


@pytest.fixture(scope="module")
def defaults():
    return preparation.Settings(max_tokens=1000, instructions=load_instructions(MEDIA))


def test_every_direction_has_forty_instructions():
    for direction, sentences in load_instructions(MEDIA).items():
        assert len({sentence.lower() for sentence in sentences}) == len(sentences) >= 40, direction
        assert all(s.count("{text}") == direction.startswith("text->") and "{m" not in s for s in sentences)


def test_instructions_are_drawn_evenly_and_always_the_same(defaults):
    sentences = defaults.instructions
    drawn = Counter(choose(sentences, "text->image", 0, f"row {i}") for i in range(4400))
    assert set(drawn) == set(sentences["text->image"]) and max(drawn.values()) < 200  # of 100 on average
    # Other processes, machines and releases have to draw the same, or a resumed run would differ.
    assert choose({"text->image": list("abcdefgh")}, "text->image", 0, "row 0") == "e"
    assert choose({"text->image": list("abcdefgh")}, "text->image", 1, "row 0") == "h"


def test_instructions_of_ones_own(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text('text->speech: ["Sag: {text}"]\nany->text: ["Was ist dieses {modality}?"]\n')
    own = load_instructions(["speech", "smell"], file)
    assert own["text->speech"] == ["Sag: {text}"] and own["smell->text"] == ["Was ist dieses smell?"]
    assert len(own["speech->text"]) >= 40 and own["text->smell"]
    for content, message in [
        ("text->video: ['a {text}']", "Unknown direction 'text->video'"),
        ("text->speech: ['Say it']", "{text} exactly once"),
        ("speech->text: ['Write {text}']", "no {text}"),
        ("speech->text: Write", "a list of at least one"),
        ("speech->text: [Write: down]", "quote those with a colon"),
        ("- Write", "no instructions"),
        ("speech->text: [", "Can't read"),
    ]:
        file.write_text(content)
        with pytest.raises(ValueError) as error:
            load_instructions(["speech"], file)
        assert message in str(error.value)


def test_requests_for_speech_begin_with_another_recording_of_the_speaker(fake, defaults):
    records = [
        {"text": f"number {i}", "speech": sound(0.1 * i, 0.2), "speaker": speaker}
        for i, speaker in enumerate(["ann", "ann", "bob", "ann"], start=1)
    ]
    options = replace(defaults, voice_seconds=0.1, directions="text-to-x")
    made, rejects = prepare(fake, options, *records, {"text": "a flute", "music": sound()})
    assert rejects == [] and [row["task"] for row in made] == ["text->speech"] * 4 + ["text->music"]
    codes = fake.encode_media("speech", [record["speech"] for record in records])
    voices = []
    for row in made:
        asked = row["input_ids"][: -len(learned(row))]
        voices.append([part.codes for part in parse(asked, fake.tokenizer, fake.specs) if part.codes is not None])
    assert voices[2] == [] == voices[4]  # Bob spoke once; a tune has no voice
    for i in (0, 1, 3):
        (voice,) = voices[i]
        assert voice.shape == (1, 5) and any(np.array_equal(voice, codes[k][:, :5]) for k in {0, 1, 3} - {i})
    assert prepare(fake, options, *records)[0] == made[:4]
    for speaker in (["ann"], 1.5):
        _, (reject,) = prepare(fake, options, records[0] | {"speaker": speaker})
        assert "need a string or a number" in reject["reason"]


def test_what_is_made_may_be_read_back(fake, defaults):
    options = replace(defaults, read_back="what was asked for", directions="text-to-x")
    (make, read), _ = prepare(fake, options, {"text": "a dog", "image": grey()})
    sentence = choose(defaults.instructions, "text->image", 0, "0").replace("{text}", "a dog")
    assert (make["task"], read["task"]) == ("text->image", "image->request")
    assert words(fake, read["input_ids"]).startswith("[Human]: what was asked for <soim>")
    assert words(fake, learned(read)) == f" {sentence}<eos>"


def test_a_pair_becomes_a_row_for_each_direction(fake, defaults):
    made, rejects = prepare(fake, defaults, {"text": " a dog ", "speech": sound()})
    assert rejects == [] and [row["task"] for row in made] == ["speech->text", "text->speech"]
    codes = fake.encode_media("speech", [sound()])[0]
    hear, speak = made
    assert words(fake, learned(hear)) == " a dog<eos>"
    (part,) = [part for part in parse(hear["input_ids"], fake.tokenizer, fake.specs) if part.modality == "speech"]
    assert np.array_equal(part.codes, codes)
    (part,) = parse(learned(speak), fake.tokenizer, fake.specs)
    assert np.array_equal(part.codes, codes)
    text = words(fake, speak["input_ids"])
    sentence = choose(defaults.instructions, "text->speech", 0, "0").replace("{text}", "a dog")
    assert text.startswith(f"[Human]: {sentence}<eoh>\n[MMGPT]: <sosp>") and text.endswith("<eosp><eos>")
    assert speak["modality_tokens"]["speech"] == codes.size + 2 and speak["modality_tokens"]["music"] == 0


@settings(max_examples=60, deadline=None)
@given(text=st.text() | st.lists(st.sampled_from(["<eoh>", "[MMGPT]", "<🗣️5>", "a", " ", "<eos>", "\n"])).map("".join))
def test_any_text_is_learned_as_it_is_or_rejected(fake, defaults, text):
    made, rejects = prepare(fake, defaults, {"text": text, "music": sound()})
    if not text.strip():
        assert not made and "No text" in rejects[0]["reason"]
        return
    hear, play = made
    assert words(fake, learned(hear)) == f" {text.strip()}<eos>"
    end = fake.tokenizer.convert_tokens_to_ids("<eos>")
    for row in made:
        assert row["input_ids"].count(end) == 1 and row["input_ids"][-1] == end
        assert all(label in (IGNORED, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))
        assert row["length"] == len(row["input_ids"]) == sum(row["modality_tokens"].values())
        assert row["modality_tokens"]["music"] == 2 * 5 + 2


def test_directions(fake, defaults):
    records = [{"text": "t", "speech": sound(0.2), "image": {"bytes": grey(), "path": "no such file.png"}}] * 60
    for directions, wanted in (
        ("x-to-text", {"speech->text": 60, "image->text": 60}),
        ("text-to-x", {"text->speech": 60, "text->image": 60}),
        ("both", {"speech->text": 60, "image->text": 60, "text->speech": 60, "text->image": 60}),
    ):
        made, _ = prepare(fake, replace(defaults, directions=directions), *records)
        assert Counter(row["task"] for row in made) == wanted
    drawn, _ = prepare(fake, replace(defaults, directions="random"), *records)
    tasks = Counter(row["task"] for row in drawn)
    assert tasks["speech->text"] + tasks["text->speech"] == 60 == tasks["image->text"] + tasks["text->image"]
    assert min(tasks.values()) > 15
    again, _ = prepare(fake, replace(defaults, directions="random", seed=1), *records)
    assert [row["task"] for row in again] != [row["task"] for row in drawn]


def test_the_loss_may_be_on_every_token(fake, defaults):
    made, _ = prepare(fake, replace(defaults, loss="all"), {"text": "a dog", "image": grey()})
    assert len(made) == 2 and all(row["labels"] == row["input_ids"] for row in made)


CONVERSATION = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "speech", "audio": sound(), "transcript": "draw a dog", "text": None}]},
    {"role": "assistant", "content": [{"type": "text", "text": "here"}, {"type": "image", "bytes": grey()}]},
    {"role": "user", "content": "thanks"},
    {"role": "assistant", "content": "bye"},
]


@pytest.mark.parametrize("transcripts", preparation.TRANSCRIPTS)
def test_of_a_conversation_the_replies_are_learned(fake, defaults, transcripts):
    made, rejects = prepare(fake, replace(defaults, transcripts=transcripts), {"messages": CONVERSATION})
    assert rejects == []
    spec = fake.specs[0]
    own = {spec.start_token_id, spec.end_token_id, *range(spec.first_code_id, spec.first_code_id + spec.codebook_size)}
    picture = words(fake, [token for token in made[0]["input_ids"] if token in own])
    reply = f" here {picture}<eos> bye<eos>"
    said = "<-Ins-> draw a dog\n <-Res->"
    expected = {"free": f" {said}{reply}", "forced": f" {reply}", "none": reply}[transcripts]
    assert words(fake, learned(made[0])) == expected
    assert (said in words(fake, made[0]["input_ids"])) == (transcripts != "none")
    assert words(fake, made[0]["input_ids"]).startswith("be brief\n[Human]: <sosp>")
    assert made[0]["task"] == "messages" and made[0]["modality_tokens"]["image"] == 6


@pytest.mark.parametrize(
    "record, reason",
    [
        ({"text": "t"}, "No medium beside the text: need one of image, speech, music"),
        ({"speech": sound()}, "No text: need a string in 'text'"),
        ({"text": 5, "speech": sound()}, "No text"),
        ({"text": "t", "speech": "gone.wav"}, "No file"),
        ({"text": "t", "speech": b"RIFF junk"}, "Can't read 9 bytes as audio"),
        ({"text": "t", "image": b"\x89PNG junk"}, "Can't read"),
        ({"text": "t", "image": grey()[:50]}, "truncated or damaged"),
        ({"text": "t", "speech": [0.1, 0.2]}, "without its sampling rate"),
        ({"text": "t", "speech": {"array": [float("nan")], "sampling_rate": 1600}}, "NaN"),
        ({"text": "t", "speech": {"array": [0.1] * 99, "sampling_rate": "fast"}}, "sampling rate of 'fast'"),
        ({"text": "t", "speech": {"name": "x"}}, "Got a block of speech with ['name', 'type'], need one of"),
        ({"text": "t", "speech": "http://localhost/x.wav"}, "not fetched"),
        ({"text": "t " * 1000, "speech": sound()}, "tokens, at most 1000 fit"),
        ({"text": "\ud800", "speech": sound()}, "surrogates"),
        ({"text": "t", "speech": {"codes": [[]]}}, "speech codes of no frames, need one or more"),
        ({"text": "t", "speech": {"codes": []}}, "speech codes of no frames, need one or more"),
        ({"text": "t", "speech": {"codes": [[1], [2, 3]]}}, "inhomogeneous"),
        ({"text": "t", "image": {"values": [1, 2]}}, "Got a block of image with ['type', 'values'], need one of"),
        ({"messages": "[{]"}, "Expecting"),
        ({"messages": "[" * 100_000}, "Can't read the JSON of messages"),
        ({"messages": []}, "without messages"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "Got role 'bot'"),
        ({"messages": [{"role": "user", "content": "x"}]}, "Nothing to learn"),
        ({"messages": [{"role": "assistant", "content": None}]}, "Got content of type NoneType"),
        ({"messages": [{"role": "assistant", "content": [{"type": "video", "path": "x"}]}]}, "Unknown block type"),
        ({"messages": [{"role": "assistant", "content": [{"type": "image", "codes": [1, 2]}]}]}, "need exactly 4"),
        ({"messages": [{"role": "assistant", "content": [{"type": "text", "text": 3}]}]}, "Got text of type int"),
        (ValueError("Not valid JSON: x"), "Not valid JSON"),
    ],
)
def test_a_bad_row_is_rejected_alone_and_says_why(fake, defaults, record, reason):
    good = {"text": "t", "image": grey()}
    made, rejects = prepare(fake, replace(defaults, directions="x-to-text"), good, record, good)
    assert [row["source"] for row in made] == ["0", "2"]
    (bad,) = rejects
    assert bad["source"] == "1" and reason in bad["reason"] and "\n" not in bad["reason"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "path", "bytes", "array", "codes", "sampling_rate"]), inner)
    ),
    max_leaves=8,
)
BLOCK = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "transcript", "audio", *MEDIA]) | JSON},
    optional={"text": JSON, "transcript": JSON, "codes": JSON, "path": JSON, "image": JSON},
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant"]) | JSON}, optional={"content": st.lists(BLOCK) | JSON}
)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["text", *MEDIA]), JSON)
    | st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=3) | JSON})
    | st.fixed_dictionaries({"text": st.just("t"), "speech": JSON, "image": JSON})
)
def test_no_record_stops_a_run(fake, defaults, record):
    made, rejects = prepare(fake, defaults, record)
    found = [(row["source"], row["task"]) for row in (*made, *rejects)]
    assert found and len(found) == len(set(found))


def test_other_fields_of_a_medium_are_nobody_s_business(fake, defaults):
    """As in a data set of sums: {"bytes", "problem": "What is 3+4?"}."""
    record = {"text": "7", "image": {"bytes": grey()}}
    named = {"text": "7", "image": {"bytes": grey(), "problem": "What is 3+4?", "values": [3, 4]}}
    assert prepare(fake, defaults, named) == prepare(fake, defaults, record)


def test_voices_are_of_good_codes_only(fake, defaults):
    """A list of codes is as good as an array, and codes of another modality are nobody's voice."""
    records = [{"text": "t", "speech": {"codes": codes}} for codes in ([[1, 2, 3]], [[4, 5, 6]], [[10**9]])]
    made, rejects = prepare(fake, replace(defaults, voice_seconds=0.04, directions="text-to-x"), *records)
    assert [bad["source"] for bad in rejects] == ["2"] and "Got speech codes in" in rejects[0]["reason"]
    for row, voice in zip(made, ([4, 5], [1, 2]), strict=True):
        asked = row["input_ids"][: -len(learned(row))]
        (part,) = [part for part in parse(asked, fake.tokenizer, fake.specs) if part.codes is not None]
        assert part.codes.tolist() == [voice]


def test_a_bad_medium_leaves_the_others_of_its_row(fake, defaults):
    made, rejects = prepare(fake, defaults, {"text": "t", "image": b"junk", "speech": sound()})
    assert [row["task"] for row in made] == ["speech->text", "text->speech"]
    assert [bad["task"] for bad in rejects] == ["image->text", "text->image"]


def test_longer_sound_is_rejected_or_cut_and_padding_makes_batches(defaults):
    processor = make_processor()
    music = next(spec for spec in processor.specs if spec.name == "music")
    music.max_seconds = 0.4  # 10 frames
    records = [{"text": "t", "music": sound(seconds=seconds)} for seconds in (0.2, 0.24, 0.41, 2.0)]
    options = replace(defaults, directions="text-to-x")
    made, rejects = prepare(processor, options, *records)
    # 0.41 s is 0.4 s for whoever wrote the file.
    assert [row["modality_tokens"]["music"] - 2 for row in made] == [2 * 5, 2 * 6, 2 * 10]
    assert [bad["source"] for bad in rejects] == ["3"] and "2 s of audio" in rejects[0]["reason"]
    made, rejects = prepare(processor, replace(options, cut=("music",)), *records)
    assert [row["modality_tokens"]["music"] - 2 for row in made] == [2 * 5, 2 * 6, 2 * 10, 2 * 10] and not rejects
    batches = processor.codec("music").batches
    batches.clear()
    made, _ = prepare(processor, replace(options, pad_seconds=0.3), *records[:2])
    assert batches == [(2, 480)] and {row["modality_tokens"]["music"] for row in made} == {2 * 8 + 2}
