"""Pieces of a reply while it is generated add up to the reply."""

import threading

import numpy as np
import pytest
import torch
from tiny_model import ASSISTANT, EOH, EOS, HUMAN, table, tiny_config, tiny_model

from modeling_anygpt.streaming_anygpt import CodesPiece, PieceStreamer, TextPiece

PROMPT = [HUMAN, 7, 8, EOH, ASSISTANT, 9]
IMAGE, SPEECH, MUSIC = table()


class Bytes:
    """A tokenizer whose tokens 0..39 are letters, but 38 and 39 the two bytes of one character, and 37 is special."""

    def decode(self, ids, skip_special_tokens, clean_up_tokenization_spaces):
        ids = [i for i in ids if i != 37 or not skip_special_tokens]
        letters = {38: b"\xc3", 39: b"\xa9"}
        return b"".join(letters.get(i, bytes([97 + i % 26])) for i in ids).decode("utf-8", errors="replace")


def feed(streamer, prompt, new):
    streamer.put(torch.tensor([prompt]))
    for token in new:
        streamer.put(torch.tensor([token]))
    streamer.end()
    return list(streamer)


def test_text_and_codes_in_order():
    codes = np.array([[0, 1, 2], [6, 5, 4]])
    music = [MUSIC.token_id(int(codes[k, t]), k) for t in range(3) for k in range(2)]
    new = [1, 38, 39, 2, MUSIC.start_token_id, *music, MUSIC.end_token_id, 3, EOS]
    pieces = feed(PieceStreamer(tiny_config(), Bytes()), PROMPT, new)
    assert [piece.text for piece in pieces if isinstance(piece, TextPiece)] == ["b", "é", "c", "d"]
    frames = [piece for piece in pieces if isinstance(piece, CodesPiece)]
    assert [piece.codes.shape for piece in frames] == [(2, 1)] * 3 + [(2, 0)]
    assert [piece.last for piece in frames] == [False] * 3 + [True]
    assert np.concatenate([piece.codes for piece in frames], 1).tolist() == codes.tolist()
    assert feed(PieceStreamer(tiny_config(), Bytes()), PROMPT, [1, 37]) == [TextPiece("b")]  # another end of a reply
    pair = feed(PieceStreamer(tiny_config(), Bytes(), frames=2), PROMPT, new)
    assert [piece.codes.shape[1] for piece in pair if isinstance(piece, CodesPiece)] == [2, 1]


def test_an_item_that_the_prompt_opened():
    prompt = [*PROMPT, MUSIC.start_token_id, MUSIC.token_id(1, 0), MUSIC.token_id(1, 1), MUSIC.token_id(2, 0)]
    pieces = feed(PieceStreamer(tiny_config(), Bytes()), prompt, [MUSIC.token_id(3, 1), MUSIC.end_token_id, EOS])
    assert [piece.codes.tolist() for piece in pieces] == [[[2], [3]], [[], []]]
    assert feed(PieceStreamer(tiny_config(), Bytes()), [*PROMPT, SPEECH.start_token_id, EOH, 3], [4]) == [
        TextPiece("e")
    ]


def test_while_a_model_generates():
    model, streamer = tiny_model(), PieceStreamer(tiny_config(), Bytes(), timeout=60)
    options = dict(max_new_tokens=25, required_modalities=("image", "speech"), do_sample=False)
    new = model.generate(torch.tensor([PROMPT]), **options)[0, 6:].tolist()
    arguments = options | {"inputs": torch.tensor([PROMPT]), "streamer": streamer}
    thread = threading.Thread(target=model.generate, kwargs=arguments)
    thread.start()
    pieces = list(streamer)
    thread.join()
    for spec in (IMAGE, SPEECH):
        codes = np.concatenate([p.codes for p in pieces if isinstance(p, CodesPiece) and p.modality == spec.name], 1)
        ids = [i for i in new if spec.first_code_id <= i < spec.first_code_id + spec.num_codes]
        assert codes[0].tolist() == [i - spec.first_code_id for i in ids] and ids
    assert sum(isinstance(piece, CodesPiece) and piece.last for piece in pieces) >= 2


def test_errors():
    with pytest.raises(ValueError, match="batch of 2"):
        PieceStreamer(tiny_config(), Bytes()).put(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="at least 1"):
        PieceStreamer(tiny_config(), Bytes(), frames=0)
