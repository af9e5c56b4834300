"""Messages -> ids and labels, in the chat format of the released AnyGPT.

    {system}\\n[Human]: {message}<eoh>\\n[MMGPT]: {reply}<eos>\\n[Human]: ...<eoh>\\n[MMGPT]:

The newline is the `separator`: chat models have it; base models, which know single turns, have a space.

A message is `{"role": "system" | "user" | "assistant", "content": str | list of blocks}`; blocks are

    {"type": "text", "text": str}
    {"type": "transcript", "text": str}      what a spoken instruction said: `<-Ins-> {text}\\n <-Res->`
    {"type": <modality>, "codes": [K, T]}    `<so..>` codes `<eo..>`

and are joined by one space, unless white space is there already.

Text can't forge structure. A conversation is first a list of pieces, each either text or ids. The text is encoded by
a copy of the tokenizer that knows no added token except one marker with a random name, which stands where the ids go:
so `<eoh>` or `<🗣️5>` in a message is spelled in ordinary pieces, while honest text gets exactly the ids that it has
in the whole rendered string (prefix spaces, merges and all).
"""

from __future__ import annotations

import json
import secrets
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Encoding, Tokenizer

from .vocabulary import (
    ASSISTANT,
    END_OF_HUMAN,
    END_OF_REPLY,
    HUMAN,
    INSTRUCTION,
    RESPONSE,
    add_modality_tokens,
    find_modality,
    item_to_ids,
    modalities_from_tokenizer,
    ordinary_token,
)

__all__ = ["add_modality_tokens", "encode_text", "modalities_from_tokenizer", "render", "render_text"]

IGNORED = -100  # the label that transformers' losses skip

CONTROL_TOKENS = (HUMAN, ASSISTANT, END_OF_HUMAN, END_OF_REPLY, RESPONSE, INSTRUCTION)

# One piece of a conversation: text or ids, and whether the model learns to say it.
Piece = tuple[str | list[int], bool]


class TextOnly:
    """A copy of a fast tokenizer in which no text can spell an added token.

    Added tokens are removed; where the model's own vocabulary holds one too (`</s>` in LLaMA's), that entry gets a
    random name, so that no merge and no look-up reaches it. One added token with a random name marks the gaps.
    """

    def __init__(self, tokenizer: Any):
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} is not a fast tokenizer. Load it with AutoTokenizer (use_fast=True)."
            )
        secret = secrets.token_hex(16)
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        # Runs of spaces and newlines that a tokenizer (Gemma's) keeps as added tokens are text: they stay.
        text = [t for t in state["added_tokens"] if not t["special"] and not t["content"].strip("▁ \t\r\n")]
        added = {token["content"] for token in state["added_tokens"] if token not in text}
        state["added_tokens"] = text
        model = state["model"]

        def rename(token: str) -> str:
            return f"{secret}{token}" if token in added else token

        if isinstance(model["vocab"], dict):
            model["vocab"] = {rename(token): index for token, index in model["vocab"].items()}
        else:  # Unigram: pairs of piece and score, the index is the id
            model["vocab"] = [[rename(token), score] for token, score in model["vocab"]]
        if model.get("unk_token") is not None:
            model["unk_token"] = rename(model["unk_token"])
        if "merges" in model:
            model["merges"] = [pair for pair in model["merges"] if not added & {*pair, "".join(pair)}]
        self.backend = Tokenizer.from_str(json.dumps(state))
        self.backend.no_truncation()
        self.backend.no_padding()
        self.gap = f"<{secret}>"
        self.backend.add_tokens([ordinary_token(self.gap, self.backend)])
        self.gap_id = self.backend.token_to_id(self.gap)
        self.control_ids: dict[str, int] = {}

    def control_id(self, token: str) -> int:
        if token not in self.control_ids:
            raise ValueError(f"The tokenizer has no token {token!r}. Grow it with add_modality_tokens.")
        return self.control_ids[token]

    def encode(self, text: str, add_special_tokens: bool) -> Encoding:
        if not text.isascii():
            text.encode()  # half a surrogate pair: a ValueError that says where, instead of the Rust side's
        return self.backend.encode(text, add_special_tokens=add_special_tokens)


_text_only: WeakKeyDictionary[Any, TextOnly] = WeakKeyDictionary()


def text_only(tokenizer: Any) -> TextOnly:
    """The text-only copy of `tokenizer`, built once (about a second for a full-size vocabulary) and kept."""
    copy = _text_only.get(tokenizer)
    if copy is None:
        copy = _text_only[tokenizer] = TextOnly(tokenizer)
    if len(copy.control_ids) < len(CONTROL_TOKENS):  # a new copy, or the tokenizer may have grown since
        ids = zip(CONTROL_TOKENS, tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS)), strict=True)
        copy.control_ids = {token: i for token, i in ids if i is not None and i != tokenizer.unk_token_id}
    return copy


def encode_pieces(pieces: Sequence[Piece], copy: TextOnly) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation given in pieces, with what the tokenizer itself puts around a text (BOS)."""
    pieces = [*pieces, ([], False)]  # a gap for nothing, as a text that is a single gap would get no prefix space
    strings = [piece if isinstance(piece, str) else copy.gap for piece, _ in pieces]
    encoding = copy.encode("".join(strings), add_special_tokens=True)
    # Piece i covers the characters from starts[i] on; text tokens find their piece by their first character.
    starts = list(accumulate(map(len, strings), initial=0))[:-1]
    gaps = iter([piece for piece in pieces if not isinstance(piece[0], str)])
    input_ids: list[int] = []
    labels: list[int] = []
    for token, (start, _) in zip(encoding.ids, encoding.offsets, strict=True):
        if token == copy.gap_id:
            ids, learned = next(gaps)
        else:
            ids, learned = [token], pieces[bisect_right(starts, start) - 1][1]
        input_ids += ids
        labels += ids if learned else [IGNORED] * len(ids)
    return input_ids, labels


# For programs that know only the tokenizer; equal to `render` for text, but text in it can spell control tokens.
# Blocks are joined as there: one space, unless white space is there already.
TEMPLATE = """\
{%- macro content(message) -%}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- set out = namespace(text='') -%}
        {%- for block in message['content'] -%}
            {%- if block['type'] == 'text' -%}
                {%- set new = block['text'] -%}
            {%- elif block['type'] == 'transcript' -%}
                {%- set new = '<-Ins-> ' + block['text'] + '\\n <-Res->' -%}
            {%- else -%}
                {{- raise_exception('Media need the processor: use AutoProcessor.apply_chat_template.') -}}
            {%- endif -%}
            {%- if out.text and new and not out.text[-1].isspace() and not new[0].isspace() -%}
                {%- set out.text = out.text + ' ' -%}
            {%- endif -%}
            {%- set out.text = out.text + new -%}
        {%- endfor -%}
        {{- out.text -}}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
    {%- if not loop.first -%}{{- 'SEPARATOR' -}}{%- endif -%}
    {%- if message['role'] == 'system' -%}
        {{- content(message) -}}
    {%- elif message['role'] == 'user' -%}
        {{- '[Human]: ' + content(message) + '<eoh>' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- '[MMGPT]:' -}}
        {%- generation -%}
            {{- ' ' + content(message) + '<eos>' -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- raise_exception('Roles are system, user and assistant.') -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'SEPARATOR[MMGPT]:' -}}{%- endif -%}
"""
CHAT_TEMPLATE = TEMPLATE.replace("SEPARATOR", "\\n")


def chat_template_for(tokenizer: Any, separator: str = "\n") -> str:
    """`CHAT_TEMPLATE` with this separator, and with the BOS token if the tokenizer puts one before every text."""
    template = TEMPLATE.replace("SEPARATOR", json.dumps(separator)[1:-1])
    if tokenizer("")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return template
    text = f"{HUMAN}:"
    spelled = tokenizer(tokenizer.bos_token + text, add_special_tokens=False)["input_ids"]
    if spelled == tokenizer(text)["input_ids"][: len(spelled)]:
        return "{{- bos_token -}}\n" + template
    return "{{- bos_token + ' ' -}}\n" + template  # a BOS that is spelled out stands in for the prefix space


def encode_text(text: str, tokenizer: Any) -> list[int]:
    """Ids of `text` as it reads inside a conversation (after a control token): never one of an added token."""
    copy = text_only(tokenizer)
    ids = copy.encode(copy.gap + text, add_special_tokens=False).ids
    return ids[ids.index(copy.gap_id) + 1 :]


def render(
    messages: Sequence[dict[str, Any]],
    tokenizer: Any,
    modalities: Sequence[Any],
    add_generation_prompt: bool = False,
    system: str | None = None,
    continue_final_message: bool = False,
    start_modality: str | None = None,
    separator: str = "\n",
) -> tuple[list[int], list[int]]:
    """Ids of a conversation and the labels to train on it.

    Args:
        messages: see the module; at most one system message, the first.
        modalities: rows with ids filled (`add_modality_tokens` or `modalities_from_tokenizer`).
        add_generation_prompt: end with `[MMGPT]:`, for the model to go on.
        system: the system line if the messages bring none.
        continue_final_message: leave the last (assistant) message open, for the model to go on with it.
        start_modality: end with the start token of this modality, so that the model has to speak, draw, ...
        separator: what stands between turns.

    Returns:
        input_ids, labels: of equal length. Labels are the ids of every assistant turn with its `<eos>` (and the space
        after the colon), -100 elsewhere.
    """
    copy = text_only(tokenizer)
    pieces = conversation_pieces(
        messages, copy, modalities, add_generation_prompt, system, continue_final_message, start_modality, separator
    )
    return encode_pieces(pieces, copy)


def render_text(
    messages: Sequence[dict[str, Any]],
    tokenizer: Any,
    modalities: Sequence[Any],
    add_generation_prompt: bool = False,
    system: str | None = None,
    continue_final_message: bool = False,
    start_modality: str | None = None,
    separator: str = "\n",
) -> str:
    """What `render` renders, as one string to look at. Don't tokenise it: text in it may spell control tokens."""
    copy = text_only(tokenizer)
    pieces = conversation_pieces(
        messages, copy, modalities, add_generation_prompt, system, continue_final_message, start_modality, separator
    )
    return "".join(
        piece if isinstance(piece, str) else "".join(tokenizer.convert_ids_to_tokens(piece)) for piece, _ in pieces
    )


def conversation_pieces(
    messages: Sequence[dict[str, Any]],
    copy: TextOnly,
    modalities: Sequence[Any],
    add_generation_prompt: bool,
    system: str | None,
    continue_final_message: bool,
    start_modality: str | None,
    separator: str,
) -> list[Piece]:
    """The conversation as text and ids; arguments as in `render`."""
    messages = [checked_dict(message, "message", '{"role": "user", "content": ...}') for message in messages]
    if messages and messages[0].get("role") == "system":
        system = _system_text(messages.pop(0))
    if not messages:
        raise ValueError("Got a conversation without messages, need at least one of a user or an assistant.")
    if continue_final_message and (add_generation_prompt or messages[-1].get("role") != "assistant"):
        raise ValueError("continue_final_message needs a last message by the assistant and no generation prompt.")
    if start_modality is not None and not (add_generation_prompt or continue_final_message):
        raise ValueError("start_modality needs add_generation_prompt or continue_final_message.")

    human, assistant, end_of_human, end_of_reply = (
        [copy.control_id(token)] for token in (HUMAN, ASSISTANT, END_OF_HUMAN, END_OF_REPLY)
    )
    pieces: list[Piece] = [(system, False)] if system else []
    for index, message in enumerate(messages):
        role = message.get("role")
        if role not in ("user", "assistant"):
            raise ValueError(
                f"Got role {role!r} in message {index}. Allowed: 'user', 'assistant', and 'system' in the first one."
            )
        learned = role == "assistant"
        if pieces:
            pieces.append((separator, False))
        pieces += [(assistant if learned else human, False), (":", False), (" ", learned)]
        pieces += [(piece, learned) for piece in _content_pieces(message.get("content"), copy, modalities)]
        is_open = continue_final_message and index == len(messages) - 1
        if not is_open:
            pieces.append((end_of_reply if learned else end_of_human, learned))
    if add_generation_prompt:
        pieces += [(separator, False), (assistant, False), (":", False)]
    if start_modality is not None:
        pieces += [(" ", False), ([find_modality(modalities, start_modality).start_token_id], False)]
    return pieces


def _content_pieces(content: Any, copy: TextOnly, modalities: Sequence[Any]) -> list[str | list[int]]:
    """The blocks of one message with the spaces between them."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(blocks, (list, tuple)):
        raise ValueError(f"Got content of type {type(content).__name__}, need a string or a list of blocks.")
    pieces: list[str | list[int]] = []
    for block in blocks:
        new = _block_pieces(block, copy, modalities)
        if not new:
            continue
        if pieces and not _ends_with_space(pieces[-1]) and not _starts_with_space(new[0]):
            pieces.append(" ")
        pieces += new
    return pieces


def checked_dict(value: Any, name: str, example: str) -> Mapping[str, Any]:
    """A message or block as it is; a ValueError if it is something else."""
    if not isinstance(value, Mapping):
        raise ValueError(f"Got a {name} of type {type(value).__name__}, need a dict like {example}.")
    return value


def own_block(block: Any, modalities: Collection[str]) -> dict[str, Any]:
    """A copy of a content block, by our name for its type: "audio" means speech where the table has no such row, and
    the media blocks of OpenAI's messages are read as well."""
    block = dict(checked_dict(block, "block", '{"type": "text", "text": ...}'))
    kind = block.get("type")
    if kind == "audio" and "audio" not in modalities:
        return block | {"type": "speech"}
    if kind == "image_url" and kind not in modalities:
        url = block.get("image_url")
        return {"type": "image", "url": url.get("url") if isinstance(url, Mapping) else url}
    if kind == "input_audio" and isinstance(block.get("input_audio"), Mapping):
        return {"type": "speech", "base64": block["input_audio"].get("data")}
    return block


def _block_pieces(block: dict[str, Any], copy: TextOnly, modalities: Sequence[Any]) -> list[str | list[int]]:
    kind = checked_dict(block, "block", '{"type": "text", "text": ...}').get("type")
    if kind in ("text", "transcript"):
        text = block.get("text")
        if not isinstance(text, str):
            raise ValueError(f"Got text of type {type(text).__name__} in a {kind} block, need a string.")
        if kind == "text":
            return [text] if text else []
        return [[copy.control_id(INSTRUCTION)], f" {text}\n ", [copy.control_id(RESPONSE)]]
    if kind not in [modality.name for modality in modalities]:
        allowed = ", ".join(["text", "transcript", *(modality.name for modality in modalities)])
        raise ValueError(
            f"Unknown block type {kind!r}. Allowed: {allowed}. A new modality is a row of the config's table."
        )
    if block.get("codes") is None:
        raise ValueError(f"Got a {kind} block without codes ({sorted(block)}). Encode its media first.")
    modality = find_modality(modalities, kind)
    return [[modality.start_token_id, *item_to_ids(modality, block["codes"]), modality.end_token_id]]


def _system_text(message: dict[str, Any]) -> str:
    content = message.get("content")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(blocks, (list, tuple)):
        raise ValueError(f"Got a system message of type {type(content).__name__}, need a string or a list of blocks.")
    for block in blocks:
        kind = checked_dict(block, "block", '{"type": "text", "text": ...}').get("type")
        if kind != "text":
            raise ValueError(f"Got a {kind!r} block in the system message, only text is allowed there.")
        if not isinstance(block.get("text"), str):
            raise ValueError(f"Got text of type {type(block.get('text')).__name__} in a system block, need a string.")
    return " ".join(block["text"] for block in blocks)


def _ends_with_space(piece: str | list[int]) -> bool:
    return isinstance(piece, str) and piece[-1:].isspace()


def _starts_with_space(piece: str | list[int]) -> bool:
    return isinstance(piece, str) and piece[:1].isspace()
