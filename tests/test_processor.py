"""AnyGPTProcessor: what goes in comes out, in batches, from any source, saved and loaded."""

import base64
import copy
import io
import pickle

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from processing_tools import ExactAudioCodec, ExactImageCodec, byte_tokenizer, make_processor, small_table, tone
from transformers import AnyToAnyPipeline, AutoConfig, AutoProcessor, AutoTokenizer, EncodecConfig, EncodecModel

from modeling_anygpt import AnyGPTConfig, AnyGPTForCausalLM, ModalitySpec
from processing_anygpt import (
    AnyGPTProcessor,
    AudioPart,
    ImagePart,
    MusicPart,
    SpeechPart,
    TextPart,
    TranscriptPart,
    UnfinishedPart,
    add_modality_tokens,
    codec_io,
    codec_shelf,
)
from processing_anygpt.media import load_audio, load_image
from processing_anygpt.vocabulary import codes_to_ids

IMAGE = [[0, 5, 10, 15]]
SPEECH = [[1, 2, 3, 60]]
MUSIC = [[1, 2, 3], [4, 5, 63]]


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def item_ids(processor, name: str, codes) -> list[int]:
    spec = next(spec for spec in processor.specs if spec.name == name)
    return [spec.start_token_id, *codes_to_ids(spec, codes), spec.end_token_id]


def media(processor) -> dict[str, object]:
    """Media whose codes are IMAGE, SPEECH and MUSIC, by the exact codecs."""
    picture, sound, music = (
        processor.decode_codes(name, [codes])[0]
        for name, codes in (("image", IMAGE), ("speech", SPEECH), ("music", MUSIC))
    )
    return {"image": picture.image, "speech": sound.waveform, "music": music.waveform}


def ask(*blocks) -> list[dict]:
    return [{"role": "user", "content": list(blocks)}]


def test_decoding_and_encoding_are_inverse(processor):
    for name, codes, kind in (
        ("image", IMAGE, ImagePart),
        ("speech", SPEECH, SpeechPart),
        ("music", MUSIC, MusicPart),
    ):
        parts = processor.decode_codes(name, [codes, np.array(codes)])
        assert all(type(part) is kind and part.modality == name for part in parts)
        source = parts[1].image if name == "image" else (parts[1].waveform, parts[1].sampling_rate)
        np.testing.assert_array_equal(processor.encode_media(name, [source])[0], codes)


def test_every_source_of_media_gives_the_same_ids(processor, tmp_path):
    made = media(processor)
    SpeechPart(made["speech"], 1600).save(tmp_path / "a.wav")
    ImagePart(made["image"]).save(tmp_path / "a.png")
    image_bytes = (tmp_path / "a.png").read_bytes()
    blocks = [
        {"type": "speech", "codes": SPEECH},
        {"type": "speech", "audio": made["speech"], "sampling_rate": 1600},
        {"type": "speech", "audio": torch.from_numpy(made["speech"]), "sampling_rate": 1600},
        {"type": "speech", "audio": {"array": made["speech"].tolist(), "sampling_rate": 1600}},
        {"type": "speech", "path": str(tmp_path / "a.wav")},
        {"type": "speech", "audio": tmp_path / "a.wav"},
        {"type": "audio", "path": tmp_path / "a.wav"},
    ]
    results = [processor.apply_chat_template(ask(block), tokenize=True) for block in blocks]
    assert all(result == results[0] for result in results)
    blocks = [
        {"type": "image", "codes": IMAGE},
        {"type": "image", "image": made["image"]},
        {"type": "image", "image": np.asarray(made["image"])},
        {"type": "image", "path": tmp_path / "a.png"},
        {"type": "image", "bytes": image_bytes},
    ]
    results = [processor.apply_chat_template(ask(block), tokenize=True) for block in blocks]
    assert all(result == results[0] for result in results)


def test_chat_of_all_modalities_there_and_back(processor):
    made = media(processor)
    answer = [
        {"type": "transcript", "text": "draw it"},
        {"type": "text", "text": "here"},
        {"type": "image", "image": made["image"]},
        {"type": "speech", "audio": made["speech"], "sampling_rate": 1600},
        {"type": "music", "audio": made["music"], "sampling_rate": 1600},
    ]
    question = ask(
        {"type": "speech", "audio": made["speech"], "sampling_rate": 1600}, {"type": "text", "text": "draw"}
    )
    prompt = processor.apply_chat_template(question, tokenize=True, add_generation_prompt=True)
    ids = processor.apply_chat_template([*question, {"role": "assistant", "content": answer}], tokenize=True)
    assert ids[: len(prompt)] == prompt
    parts = processor.parse_output(torch.tensor(ids[len(prompt) :]))
    assert [type(part) for part in parts] == [TranscriptPart, TextPart, ImagePart, SpeechPart, MusicPart]
    assert parts[0].text == "draw it" and parts[1].text == "here"
    for part, codes in zip(parts[2:], (IMAGE, SPEECH, MUSIC), strict=True):
        np.testing.assert_array_equal(part.codes, codes)
    np.testing.assert_allclose(parts[4].waveform, made["music"], atol=1e-6)
    assert answer[2].keys() == {"type", "image"}  # the user's blocks are left as they were


def test_batches_are_padded_left(processor):
    chats = [
        ask({"type": "text", "text": "hi"}),
        ask({"type": "image", "codes": IMAGE}, {"type": "text", "text": "what"}),
    ]
    batch = processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, return_labels=True
    )
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["labels"].shape
    for row, chat in enumerate(chats):
        alone = processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)
        padding = batch["input_ids"].shape[1] - len(alone)
        assert batch["input_ids"][row, padding:].tolist() == alone
        assert batch["attention_mask"][row].tolist() == [0] * padding + [1] * len(alone)
        assert (batch["labels"][row] == -100).all()
    single = processor.apply_chat_template(chats[0], tokenize=True, return_dict=True, return_tensors="pt")
    assert single["input_ids"].ndim == 2


def test_a_forced_modality_ends_the_prompt(processor):
    ids = processor.apply_chat_template(ask(), tokenize=True, add_generation_prompt=True, start_modality="image")
    assert ids[-1] == processor.specs[0].start_token_id
    reply = codes_to_ids(processor.specs[0], IMAGE)  # what the model adds
    assert isinstance(processor.parse_output(reply)[0], ImagePart)


def test_call_with_markers(processor):
    made = media(processor)
    batch = processor(
        text=["what is <image> ?", "<speech> and <music>"],
        images=[made["image"]],
        speech=(made["speech"], 1600),
        music=made["music"],
        sampling_rate=1600,
    )
    image, speech, music = (item_ids(processor, n, c) for n, c in zip(made, (IMAGE, SPEECH, MUSIC), strict=True))
    assert [len(row) for row in batch["input_ids"]] == [max(map(sum, batch["attention_mask"]))] * 2  # padded
    first, second = ([i for i in row if i != processor.tokenizer.pad_token_id] for row in batch["input_ids"])
    assert processor.tokenizer.decode(first).startswith("what is <soim>")
    assert str(image)[1:-1] in str(first)
    assert second[: len(speech)] == speech and second[-len(music) :] == music


def test_call_without_markers_puts_media_first(processor):
    made = media(processor)
    ids = processor(text="what is it", images=made["image"])["input_ids"][0]
    image = item_ids(processor, "image", IMAGE)
    assert ids[: len(image)] == image
    assert processor.tokenizer.decode(ids[len(image) :]) == " what is it"
    assert processor(images=made["image"])["input_ids"] == [image]
    nested = processor(text=["a", "b"], images=[[], [made["image"]]], padding=False)["input_ids"]
    assert len(nested[0]) == 1 and nested[1][: len(image)] == image
    assert processor(media={"image": made["image"]})["input_ids"] == [image]


def test_call_takes_text_for_text(processor):
    text = "<soim><👀0><eoim> [Human]: <image> <eos>"
    plain = processor(text=text)["input_ids"][0]
    assert not set(plain) & set(processor.tokenizer.added_tokens_decoder)
    string = processor.apply_chat_template(ask({"type": "image", "codes": IMAGE}, {"type": "text", "text": "x"}))
    ids = processor.apply_chat_template(
        ask({"type": "image", "codes": IMAGE}, {"type": "text", "text": "x"}), tokenize=True
    )
    assert processor(text=string, allow_control_tokens=True)["input_ids"] == [ids]


BAD_CALLS = {
    "nothing": ({}, "neither text nor media"),
    "videos": ({"text": "x", "videos": [1]}, "Got videos"),
    "too few": (
        {"text": "<image> <image>", "images": [Image.new("L", (4, 4))]},
        "Got 1 image items for 2 <image> markers",
    ),
    "one text short": (
        {"text": ["<image>", "x"], "images": [[Image.new("L", (4, 4))] * 2, []]},
        "with 1 <image> markers",
    ),
    "unknown": ({"media": {"smell": [1]}}, "Unknown modality 'smell'. Known: image, speech, music."),
    "no rate": ({"speech": [np.zeros(10)]}, "without its sampling rate"),
    "cut off": ({"speech": [(np.zeros(10), 1600)]}, "Got 6.2 ms of speech, need a frame of"),
    "wrong kind": ({"speech": "no.png"}, "No file no.png"),
    "no texts": ({"text": []}, r"Got text=\[\], need a string"),
    "texts that are none": ({"text": ["x", None]}, "need a string or a list"),
    "two names": ({"speech": (np.zeros(1600), 1600), "audio": (np.zeros(1600), 1600)}, "two names of the same"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(processor, name):
    arguments, complaint = BAD_CALLS[name]
    with pytest.raises((ValueError, FileNotFoundError), match=complaint) as error:
        processor(**arguments)
    assert "\n" not in str(error.value)


def test_blocks_of_base64(processor):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    blocks = [{"bytes": buffer.getvalue()}, {"base64": text}, {"url": f"data:image/png;base64,{text}"}]
    first, *others = [
        processor.apply_chat_template(ask({"type": "image", **block}), tokenize=True) for block in blocks
    ]
    assert others == [first, first]
    openai = {"type": "image_url", "image_url": blocks[2]}
    assert processor.apply_chat_template(ask(openai), tokenize=True) == first
    with pytest.raises(ValueError, match="not fetched unless asked"):
        remote = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
        processor.apply_chat_template(ask(remote), tokenize=True)
    with pytest.raises(ValueError, match="base64 of type int, need a string"):
        processor.apply_chat_template(ask({"type": "image", "base64": 5}), tokenize=True)


def test_blocks_of_speech_as_openai_has_them(processor):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(0.5, 1600), 1600, format="WAV")
    text = base64.b64encode(buffer.getvalue()).decode()
    openai = {"type": "input_audio", "input_audio": {"data": text, "format": "wav"}}
    made, wanted = (
        processor.apply_chat_template(ask(block), tokenize=True)
        for block in (openai, {"type": "speech", "bytes": buffer.getvalue()})
    )
    assert made == wanted


def test_bad_blocks(processor):
    with pytest.raises(ValueError, match="Unknown block type 'video'"):
        processor.apply_chat_template(ask({"type": "video", "path": "x.mp4"}), tokenize=True)
    with pytest.raises(ValueError, match="need one of bytes, array"):
        processor.apply_chat_template(ask({"type": "image"}), tokenize=True)
    with pytest.raises(ValueError, match="not fetched unless asked"):
        processor.apply_chat_template(ask({"type": "image", "url": "ftp://example.org/a.png"}), tokenize=True)
    with pytest.raises(ValueError, match="need exactly 4"):
        processor.apply_chat_template(ask({"type": "image", "codes": [[1, 2]]}), tokenize=True)
    with pytest.raises(ValueError, match="has no decoder that takes a voice"):
        processor.decode_codes("music", [MUSIC], voice=(np.zeros(100), 1600))
    with pytest.raises(ValueError, match="allowed are 0..15"):
        processor.decode_codes("image", [[[1, 2, 3, 99]]])
    for items in ("a.png", Image.new("L", (4, 4)), {"path": "a.png"}):
        with pytest.raises(ValueError, match=f"Got items of type {type(items).__name__}, need a list"):
            processor.encode_media("image", items)
    with pytest.raises(ValueError, match=r"missing fields \['code_token', .*Known"):
        AnyGPTProcessor(processor.tokenizer, [{"name": "image"}])
    with pytest.raises(ValueError, match="codes of no frames"):
        processor.apply_chat_template(ask({"type": "speech", "codes": []}), tokenize=True)


@pytest.mark.parametrize(
    ("conversation", "complaint"),
    [
        ("hello", "conversation of type str, need a list"),
        (None, "conversation of type NoneType"),
        ({"role": "user", "content": "x"}, "conversation of type dict"),
        (["hello"], "message of type str, need a dict like"),
        ([{"role": "user", "content": ["hello"]}], 'block of type str, need a dict like {"type": "text"'),
        ([{"role": "user", "content": [None]}], "block of type NoneType"),
        ([{"role": "system", "content": None}, {"role": "user", "content": "x"}], "system message of type NoneType"),
        ([{"role": "system", "content": [{"type": "text"}]}, {"role": "user", "content": "x"}], "in a system block"),
    ],
)
def test_messages_of_another_form(processor, conversation, complaint):
    with pytest.raises(ValueError, match=complaint) as error:
        processor.apply_chat_template(conversation, tokenize=True)
    assert "\n" not in str(error.value)


def test_codes_are_decoded_as_they_are_or_not_at_all(processor):
    assert processor.decode_codes("image", []) == processor.decode_codes("music", []) == []
    whole = processor.decode_codes("music", [MUSIC])[0].waveform
    for same in (np.array(MUSIC), torch.tensor([MUSIC])):  # a batch of one
        np.testing.assert_array_equal(processor.decode_codes("music", [same])[0].waveform, whole)
    wrong = {
        "need .2, frames": (np.array(MUSIC).T, MUSIC[0]),
        "need integers": (np.array(MUSIC) + 0.5,),
        "without a frame": ([[], []],),
    }
    for complaint, items in wrong.items():
        for codes in items:
            with pytest.raises(ValueError, match=complaint):
                processor.decode_codes("music", [codes])


def test_what_datasets_keep_beside_a_path_is_taken(processor, tmp_path):
    """Their path may be a name in an archive, or of another machine."""
    sound, picture = tone(1, 1600), Image.new("RGB", (4, 4), "red")
    file = SpeechPart(sound, 1600).save(tmp_path / "sound.wav")
    array = {"path": "gone.wav", "array": sound, "sampling_rate": 1600}
    stored = {"path": "gone.wav", "bytes": file.read_bytes()}
    for found in (array, stored, {"audio": array}, {"audio": stored}):
        np.testing.assert_array_equal(
            processor.encode_media("speech", [found])[0], processor.encode_media("speech", [str(file)])[0]
        )
    picture.save(tmp_path / "picture.png")
    stored = {"path": "gone.png", "bytes": (tmp_path / "picture.png").read_bytes()}
    for found in (stored, {"image": stored}):
        assert (
            processor.encode_media("image", [found])[0].tolist()
            == processor.encode_media("image", [picture])[0].tolist()
        )


def test_voice_of_the_speech(processor):
    voice = codec_io.decode(processor.codec("speech"), [np.full((3, 200), 7)])[0]
    plain, spoken = (processor.decode_codes("speech", [SPEECH], voice=v)[0] for v in (None, (voice, 1600)))
    codes = processor.codec("speech").encode(torch.from_numpy(spoken.waveform)[None])[0]
    np.testing.assert_array_equal(codes, [SPEECH[0], [7] * 4, [7] * 4])
    assert not np.array_equal(plain.waveform, spoken.waveform)


def test_unfinished_output_is_reported(processor):
    ids = item_ids(processor, "image", IMAGE)[:-2]
    part = processor.parse_output(ids)[0]
    assert isinstance(part, UnfinishedPart) and "3 of 4 codes" in repr(part)
    with pytest.raises(ValueError, match="Allow more new tokens"):
        part.save("never.png")
    with pytest.raises(ValueError, match="Got a batch of 1 replies"):
        processor.parse_output(torch.tensor([ids]))


def test_post_processing_for_the_pipeline(processor):
    question = ask({"type": "image", "codes": [[1, 1, 1, 1]]}, {"type": "text", "text": "draw"})
    answer = [{"type": "text", "text": "ok"}, {"type": "image", "codes": IMAGE}, {"type": "music", "codes": MUSIC}]
    ids = processor.apply_chat_template([*question, {"role": "assistant", "content": answer}], tokenize=True)
    prompt = processor.apply_chat_template(question, tokenize=True, add_generation_prompt=True)
    batch = torch.tensor([ids])
    text = processor.post_process_multimodal_output(batch)[0]
    assert processor.post_process_multimodal_output(list(batch)) == [text]  # a list of tensors
    assert text.startswith(processor.post_process_multimodal_output([prompt])[0])
    assert text.endswith(": ok  ") and "<" not in text
    heard = [{"type": "transcript", "text": "draw it"}, *answer]
    heard = processor.apply_chat_template([*question, {"role": "assistant", "content": heard}], tokenize=True)
    without = processor.post_process_multimodal_output([heard])[0]
    assert without.split() == text.split()  # what was heard is not what is answered
    assert processor.post_process_image_text_to_text([heard]) == [without]
    picture = processor.post_process_multimodal_output(batch, generation_mode="image")[0]
    np.testing.assert_array_equal(
        processor.encode_media("image", [picture])[0], IMAGE
    )  # the reply's, not the prompt's
    music = processor.post_process_multimodal_output(batch, generation_mode="audio")[0]
    assert music.shape == (3 * 64,) and music.dtype == np.float32
    assert processor.post_process_multimodal_output(batch, generation_mode="speech") == [None]
    with pytest.raises(ValueError, match="Known: text, audio, image"):
        processor.post_process_multimodal_output(batch, generation_mode="video")


def test_parts_are_saved_whole_or_not_at_all(processor, tmp_path):
    sound = SpeechPart(tone(0.2, 16000), 16000)
    for name in ("a.wav", "deep/b.flac", "c.ogg"):
        path = sound.save(tmp_path / name)
        np.testing.assert_allclose(load_audio(path, 16000)[100:3000], sound.waveform[100:3000], atol=0.02)
    assert "0.20 s at 16000 Hz" in repr(sound)
    picture = ImagePart(Image.new("RGB", (8, 8), "red"))
    assert load_image(picture.save(tmp_path / "p.png")).getpixel((0, 0)) == (255, 0, 0)
    assert TextPart("grün").save(tmp_path / "t.txt").read_text(encoding="utf-8") == "grün\n"
    (tmp_path / "kept.xyz").write_text("old")
    for part in (sound, picture):
        with pytest.raises(ValueError, match="Use "):
            part.save(tmp_path / "kept.xyz")
    assert (tmp_path / "kept.xyz").read_text() == "old"
    for part, name, words in (
        (sound, "bare", "a file without suffix"),
        (sound, "a.raw", "as '.raw'"),
        (picture, "a.psd", "as '.psd'"),
    ):
        with pytest.raises(ValueError, match=words):
            part.save(tmp_path / name)
    assert not [path for path in tmp_path.rglob(".*")]


def small_encodec() -> EncodecModel:
    config = EncodecConfig(
        target_bandwidths=[0.3],  # 2 codebooks of 64 at 25 Hz
        sampling_rate=1600,
        audio_channels=1,
        normalize=False,
        chunk_length_s=None,
        hidden_size=8,
        codebook_dim=8,
        codebook_size=64,
        num_filters=4,
        upsampling_ratios=[8, 8],
        use_causal_conv=False,
    )
    return EncodecModel(config).eval()


def test_save_and_load_with_codecs(tmp_path):
    processor = make_processor()
    processor.shelf.models.clear()
    processor.shelf.own.clear()
    processor.set_codec("music", small_encodec())
    processor.system_prompt = "be brief"
    processor.save_pretrained(tmp_path / "one")
    loaded = AutoProcessor.from_pretrained(tmp_path / "one")
    assert type(loaded) is AnyGPTProcessor
    assert loaded.modalities == processor.modalities and loaded.system_prompt == "be brief"
    assert loaded.shelf.models == {}  # lazily
    loaded.save_pretrained(tmp_path / "two")
    again = AutoProcessor.from_pretrained(tmp_path / "two")
    chat = ask({"type": "music", "audio": tone(1, 8000), "sampling_rate": 8000}, {"type": "text", "text": "what"})
    results = [p.apply_chat_template(chat, tokenize=True) for p in (processor, loaded, again)]
    assert results[0] == results[1] == results[2]
    with pytest.raises(ValueError, match="has no codec folder 'image_codec'"):
        again.codec("image")
    text = [{"role": "user", "content": "please draw"}]
    plain = AutoTokenizer.from_pretrained(tmp_path / "two")
    assert (
        plain.apply_chat_template(text, add_generation_prompt=True)["input_ids"]
        == loaded.tokenizer.apply_chat_template(text, add_generation_prompt=True)["input_ids"]
    )
    again.system_prompt = None
    assert plain.apply_chat_template(text)["input_ids"] == again.apply_chat_template(text, tokenize=True)


def test_codecs_of_a_checkpoint_in_a_subfolder(tmp_path):
    processor = make_processor()
    processor.shelf.models.clear()
    processor.shelf.own.clear()
    processor.set_codec("music", small_encodec())
    processor.save_pretrained(tmp_path / "hub" / "lm")
    loaded = AutoProcessor.from_pretrained(tmp_path / "hub", subfolder="lm")
    loaded.save_pretrained(tmp_path / "copy")
    chat = ask({"type": "music", "audio": tone(1, 8000), "sampling_rate": 8000})
    again = AutoProcessor.from_pretrained(tmp_path / "copy")
    first, *others = [p.apply_chat_template(chat, tokenize=True) for p in (processor, loaded, again)]
    assert others == [first, first]


def test_a_copy_of_a_processor_from_the_hub_has_its_codecs(tmp_path, monkeypatch):
    processor = make_processor()
    processor.shelf.models.clear()
    processor.shelf.own.clear()
    processor.set_codec("music", small_encodec())
    processor.save_pretrained(tmp_path / "hub")
    asked = []

    def download(repository, allow_patterns, **options):
        asked.append((repository, *allow_patterns))
        return str(tmp_path / "hub")

    monkeypatch.setattr(codec_shelf, "snapshot_download", download)
    loaded = AutoProcessor.from_pretrained(tmp_path / "hub")
    loaded.shelf = codec_shelf.CodecShelf("me/anygpt")  # as from_pretrained("me/anygpt") makes it
    loaded.save_pretrained(tmp_path / "copy")
    assert ("me/anygpt", "music_codec/*") in asked
    assert (tmp_path / "copy" / "music_codec" / "config.json").is_file()
    assert not (tmp_path / "copy" / "image_codec").exists()  # which the checkpoint does not have


def test_copies_leave_the_codecs(processor):
    for other in (copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
        assert other.shelf.models == {} and other.modalities == processor.modalities
    assert processor.shelf.models and "ExactAudioCodec" not in processor.to_json_string()
    assert repr(processor) == "AnyGPTProcessor(modalities: image, speech, music)"


def test_without_checkpoint_codecs_are_asked_for():
    tokenizer = byte_tokenizer()
    add_modality_tokens(tokenizer, small_table())
    processor = AnyGPTProcessor(tokenizer, [spec.to_dict() for spec in small_table()])
    with pytest.raises(ValueError, match="not loaded from one"):
        processor.encode_media("image", [Image.new("L", (4, 4))])
    processor.set_codec("music", ExactAudioCodec(2, 25, sampling_rate=800))
    with pytest.raises(ValueError, match="has a sampling_rate of 800, the modality table says 1600"):
        processor.encode_media("music", [(np.zeros(100), 1600)])


def test_a_codec_of_another_table_is_refused(processor):
    other = copy.deepcopy(make_processor())
    for codec, complaint in (
        (ExactAudioCodec(2, 50), "has a frame_rate of 50, the modality table says 25"),
        (ExactAudioCodec(2, 25, codebook_size=32), "has a codebook_size of 32, the modality table says 64"),
        (ExactAudioCodec(1, 25), "has 1 of the 2 codebooks that the modality table says"),
    ):
        other.set_codec("music", codec)
        with pytest.raises(ValueError, match=complaint):
            other.encode_media("music", [(tone(1, 1600), 1600)])


def test_processor_of_another_checkpoint():
    """A table with the ids of one tokenizer and the tokens of another."""
    rows = make_processor().modalities
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["one more"])
    add_modality_tokens(tokenizer, small_table())
    with pytest.raises(ValueError, match="different checkpoints"):
        AnyGPTProcessor(tokenizer, rows)


def test_a_new_modality_is_a_row_and_a_codec():
    sound = ModalitySpec("noise", "<🔊{}>", "<sono>", "<eono>", 64, 2, frame_rate=25, sampling_rate=1600, codec="n")
    depth = ModalitySpec("depth", "<⛰{}>", "<sode>", "<eode>", 16, codes_per_item=4, image_size=8, codec="d")
    tokenizer = byte_tokenizer()
    table = add_modality_tokens(tokenizer, [sound, depth])
    processor = AnyGPTProcessor(tokenizer, [spec.to_dict() for spec in table])
    processor.set_codec("noise", ExactAudioCodec(2, 25))
    processor.set_codec("depth", ExactImageCodec())
    made = processor.decode_codes("noise", [MUSIC])[0]
    chat = ask({"type": "noise", "audio": made.waveform, "sampling_rate": 1600}, {"type": "depth", "codes": IMAGE})
    parts = processor.parse_output(processor.apply_chat_template(chat, tokenize=True)[3:])
    kinds = [(type(part), part.modality) for part in parts]
    assert kinds == [(AudioPart, "noise"), (ImagePart, "depth")]
    assert len(processor(media={"noise": [(made.waveform, 1600)]})["input_ids"][0]) == 8


@pytest.fixture(scope="module")
def random_model(processor):
    torch.manual_seed(0)
    size = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8)
    backbone = AutoConfig.for_model("llama", vocab_size=len(processor.tokenizer), num_key_value_heads=2, **size)
    config = AnyGPTConfig(text_config=backbone, modalities=processor.modalities)
    config.assign_token_ids(processor.tokenizer)
    model = AnyGPTForCausalLM(config).eval()
    model.generation_config.eos_token_id = [config.eos_token_id, processor.tokenizer.eos_token_id]
    return model


@pytest.mark.parametrize("wanted", [("image",), ("speech",), ("text", "music")])
def test_whatever_a_model_writes_becomes_parts(processor, random_model, wanted):
    chat = ask({"type": "speech", "codes": SPEECH}, {"type": "text", "text": "answer"})
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = processor.apply_chat_template([chat, chat[:1]], **options)
    media = tuple(name for name in wanted if name != "text")
    output = random_model.generate(
        **inputs, output_modalities=wanted, required_modalities=media, do_sample=True, max_new_tokens=40
    )
    for row in output[:, inputs["input_ids"].shape[1] :]:
        parts = processor.parse_output(row)
        assert not [part for part in parts if isinstance(part, UnfinishedPart)]
        assert {part.modality for part in parts} <= set(wanted)
        assert set(media) <= {part.modality for part in parts}


def test_pipeline_any_to_any(processor, random_model):
    pipe = AnyToAnyPipeline(model=random_model, processor=processor, tokenizer=processor.tokenizer)
    chat = ask({"type": "speech", "codes": SPEECH}, {"type": "text", "text": "say it"})
    result = pipe(text=chat, return_full_text=False, generate_kwargs={"max_new_tokens": 5})
    assert isinstance(result[0]["generated_text"], str) and "say it" not in result[0]["generated_text"]
    result = pipe(text=chat, generation_mode="audio", max_new_tokens=40)
    sound = result[0]["generated_audio"]
    assert sound.dtype == np.float32 and sound.ndim == 1 and len(sound)
    result = pipe(text=["a", "bc"], max_new_tokens=5)
    assert [record["input_text"] for record in result] == ["a", "bc"]
