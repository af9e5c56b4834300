"""The modality table and the config that holds it."""

import json

import pytest
from tiny_model import EOS, table, text_config, tiny_config
from tokenizers import AddedToken, Tokenizer, models
from transformers import AutoConfig, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from modeling_anygpt import AnyGPTConfig, ModalitySpec, check_compatible, find_modality

SPEECH = dict(
    name="speech",
    code_token="<s{}>",
    start_token="<sosp>",
    end_token="<eosp>",
    codebook_size=10,
    frame_rate=50,
    sampling_rate=16000,
)


def grown_tokenizer(specs, skip=()) -> PreTrainedTokenizerFast:
    """Text pieces 0..39, then the tokens in the order of the tiny table."""
    vocabulary = {f"t{i}": i for i in range(40)} | {"\u2581": 5, "<unk>": 0}
    del vocabulary["t5"], vocabulary["t0"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
        **{"unk_token": "<unk>", "pad_token": "<unk>"},
    )
    tokens = ["[Human]", "[MMGPT]", "<eoh>", "<eos>"]
    for spec in specs:
        tokens += [*spec.tokens(), spec.start_token, spec.end_token]
    while len(tokens) < 58:
        tokens.append(f"<filler{len(tokens)}>")
    tokens += ["<-Res->", "<-Ins->"]
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in tokens if t not in skip])
    return tokenizer


def test_arithmetic_of_a_row():
    music = table()[2]
    assert music.num_codes == 14 and music.tokens_per_second == 2 and music.max_frames == 5 and music.is_audio
    assert music.token(3) == "<m3>" and music.token(3, codebook=1) == "<m10>" and music.token(3, -1) == "<m10>"
    assert music.token_id(3, 1) - music.token_id(0, 0) == 10
    assert music.tokens()[10] == music.token(3, 1)
    ids = [music.token_id(code, book) for code, book in ((1, 0), (2, 1), (3, 0), (6, 1))]
    assert music.ids_to_codes(ids).tolist() == [[1, 3], [2, 6]]
    image = table()[0]
    assert image.min_frames == image.max_frames == 6 and image.tokens_per_second is None and not image.is_audio


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "text"}, "other than 'text'"),
        ({"code_token": "<s>"}, "exactly one"),
        ({"codebook_size": 0}, "positive integer"),
        ({"num_codebooks": None}, "positive integer"),
        ({"frame_rate": None}, "either codes_per_item"),
        ({"codes_per_item": 5}, "either codes_per_item"),
        ({"code_token": None}, "code_token must be a string"),
        ({"end_token": 3}, "end_token must be a string"),
        ({"frame_rate": -1.0}, "must be a positive number"),
        ({"frame_rate": float("nan")}, "must be a positive number"),
        ({"frame_rate": "50"}, "must be a positive number, got '50'"),
        ({"frame_rate": None, "codes_per_item": 5, "num_codebooks": 2}, "multiple of num_codebooks"),
        ({"max_seconds": 0.01}, "at least one frame"),
        ({"start_token_id": 3}, "or none of them"),
        ({"start_token_id": 3, "end_token_id": 4, "first_code_id": "5"}, "or none of them"),
        ({"start_token_id": 3, "end_token_id": 4, "first_code_id": 0}, "must be different"),
        ({"loudness": 3}, "unknown keys"),
    ],
)
def test_contradictions_in_a_row_are_errors(change, words):
    with pytest.raises(ValueError, match=words) as error:
        ModalitySpec.from_dict(SPEECH | change)
    assert "\n" not in str(error.value)


def test_codes_and_ids_out_of_range():
    music = table()[2]
    for call in (lambda: music.token(7), lambda: music.token(-1), lambda: music.token_id(0, 2)):
        with pytest.raises(ValueError, match="has code"):
            call()
    with pytest.raises(ValueError, match="whole frames"):
        music.ids_to_codes([music.first_code_id] * 3)
    with pytest.raises(ValueError, match="another codebook"):
        music.ids_to_codes([music.first_code_id] * 2)
    with pytest.raises(ValueError, match="no token ids yet"):
        ModalitySpec.from_dict(SPEECH).token_id(0)


def test_row_round_trip_through_json():
    for spec in table():
        assert ModalitySpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_config_round_trip(tmp_path):
    config = tiny_config("qwen3", tied=True)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, AnyGPTConfig) and isinstance(loaded.text_config, Qwen3Config)
    assert loaded.modalities == config.modalities and loaded.tie_word_embeddings
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.vocab_size == 100 and loaded.eos_token_id == EOS and loaded.space_token_ids == config.space_token_ids
    assert not AutoConfig.from_pretrained(tmp_path, tie_word_embeddings=False).text_config.tie_word_embeddings


def test_config_owns_its_parts():
    inner = text_config()
    one, two = AnyGPTConfig(text_config=inner), AnyGPTConfig(text_config=inner)
    one.text_config.vocab_size = 7
    one.auto_map["AutoConfig"] = "x"
    assert inner.vocab_size == two.vocab_size == 100 and two.auto_map == {}
    assert isinstance(AnyGPTConfig().text_config, LlamaConfig)
    with pytest.raises(ValueError, match="model_type"):
        AnyGPTConfig(text_config={"vocab_size": 3})


def test_unknown_modality_names_the_known():
    words = "Unknown modality 'video'. Known: image, speech, music. Add one to the modality table of the config."
    with pytest.raises(ValueError) as error:
        tiny_config().modality("video")
    assert str(error.value) == words
    assert find_modality(table(), "music").num_codebooks == 2


def test_rows_must_not_overlap():
    rows = [spec.to_dict() for spec in table()]
    rows[1] |= {"name": "image"}
    with pytest.raises(ValueError, match="share the name"):
        AnyGPTConfig(text_config=text_config(), modalities=rows)
    rows[1] |= {"name": "speech", "first_code_id": rows[0]["first_code_id"] + 1}
    with pytest.raises(ValueError, match="belongs to"):
        AnyGPTConfig(text_config=text_config(), modalities=rows)


def test_a_new_modality_is_one_row():
    gesture = dict(name="gesture", code_token="<g{}>", start_token="<soge>", end_token="<eoge>", codebook_size=3)
    config = AnyGPTConfig(text_config=text_config(), modalities=[*table(), gesture | {"codes_per_item": 2}])
    tokenizer = grown_tokenizer(config.modalities)
    config.assign_token_ids(tokenizer)
    assert tokenizer.convert_ids_to_tokens(config.modality("gesture").token_id(2)) == "<g2>"


def test_ids_from_a_tokenizer():
    config = tiny_config()
    bare = [ModalitySpec.from_dict(SPEECH | {"codebook_size": 10})]
    grown = AnyGPTConfig(text_config=text_config(), modalities=bare)
    tokenizer = grown_tokenizer(table())
    grown.assign_token_ids(tokenizer)
    assert grown.modality("speech").first_code_id == config.modality("speech").first_code_id
    assert (grown.eoh_token_id, grown.eos_token_id, grown.text_config.eos_token_id) == (42, 43, 43)
    assert (grown.response_token_id, grown.instruction_token_id, grown.space_token_ids) == (98, 99, [5])


def test_disagreement_of_processor_and_model_is_one_line():
    config = tiny_config()
    check_compatible(config, grown_tokenizer(config.modalities))
    swapped = [config.modalities[i] for i in (1, 0, 2)]
    cases = {
        "first_code_id|start_token_id": grown_tokenizer(swapped),
        "has no token '<s0>'": grown_tokenizer(config.modalities, skip=("<s0>",)),
        "'<-Res->' is 98 in the model": grown_tokenizer(config.modalities, skip=("<filler57>",)),
    }
    for words, tokenizer in cases.items():
        with pytest.raises(ValueError, match=words) as error:
            check_compatible(config, tokenizer)
        assert "\n" not in str(error.value)
    larger = grown_tokenizer(config.modalities)
    larger.add_tokens(["<one more>"])
    with pytest.raises(ValueError, match="101 tokens, the model 100"):
        check_compatible(config, larger)
