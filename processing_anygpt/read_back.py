"""The best of several replies: what the model made is shown back to it, and it says how well that answers the request.

One model goes both ways: it draws "a red circle", and it tells what a picture shows. So several pictures are sampled
for a request, and the one kept is that from which the model itself would most surely tell the request: the candidate c
with the highest log P(request | c). DALL-E (arXiv 2102.12092, section 2.6) ranks its samples by a second model, CLIP;
here painter and judge are one.
"""

import copy
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from modeling_anygpt.generation_anygpt import REQUEST_KEYS, resolve_request

from .conversation import IGNORED
from .instructions import opening_of
from .parts import Segment, join_items, parse
from .vocabulary import END_OF_HUMAN, HUMAN, find_modality

AT_ONCE = 64  # items in a forward pass
ONE_REPLY = ("num_return_sequences", "num_beams", "streamer", "return_dict_in_generate", "do_sample")


@torch.inference_mode()
def generate_best(
    model: Any,
    processor: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    candidates: int | None = None,
    instruction: str | None = None,
    openings: Sequence[str] | None = None,
    **options,
) -> torch.Tensor:
    """`model.generate`, with the best of several replies for each prompt where one item is asked for.

    Args:
        input_ids: ids of prompts that end where a reply begins, `[B, L]`; attention_mask: as `generate` takes it.
        candidates: replies to choose from. None: what the checkpoint says (`read_back` of its generation config, a
            dict of `candidates`, `instruction` and `openings` for each modality), else 1, which is `generate` itself.
        instruction: what an item is shown back with; the answer is the request. None: what the checkpoint says.
        openings: "draw", "read this aloud", in lower case: how requests begin, with a colon or not. No item tells
            them, so they are left out; what was typed behind one is what a spoken reply has to say. None: what the
            checkpoint says.
        options: of `generate`.

    Returns:
        ids of prompt and reply, `[B, L + new]`, padded on the right.

    Raises:
        ValueError: several candidates where no item, or more than one, is required; no instruction; an option that
            needs or makes another number of replies.
    """
    # What `generate` goes by: the options, the generation config that is given, the checkpoint's.
    given = {key: options[key] for key in REQUEST_KEYS if options.get(key) is not None}
    settings, _ = model._prepare_generation_config(options.get("generation_config"), **given)
    asked = (settings.output_modalities, settings.required_modalities, settings.generation_mode)
    required = resolve_request(model.config, *asked).required
    stored = settings_of(settings, required)
    count = stored.get("candidates", 1) if candidates is None else candidates
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
        raise ValueError(f"Got candidates={count!r}, need a whole number, 1 or more.")
    if input_ids.ndim != 2:
        raise ValueError(f"Got input_ids of shape {tuple(input_ids.shape)}, need [batch, length].")
    prompt = {"input_ids": input_ids, "attention_mask": attention_mask}
    if count == 1:
        return model.generate(**prompt, **options)
    if len(required) != 1:
        raise ValueError(
            f"Got candidates={count} for a reply that must hold {' and '.join(required) or 'nothing but text'}. "
            "Candidates are compared by the one item that is asked for: require one, or leave candidates out."
        )
    unfit = [name for name in ONE_REPLY if name in options] + ["num_beams"] * ((settings.num_beams or 1) > 1)
    if unfit:
        raise ValueError(f"{unfit[0]} does not go with candidates={count}. Leave it out, or set candidates=1.")
    instruction = instruction or stored.get("instruction")
    if not instruction:
        raise ValueError(
            f"The checkpoint does not say with what words it is asked about {required[0]}. Pass instruction, for "
            'example "Describe this picture."'
        )
    sampling = {"num_return_sequences": count, "do_sample": True}
    if options.get("generation_config") is not None:
        config = copy.deepcopy(options["generation_config"])  # transformers wants all settings in it, or none
        config.update(**sampling)
        sampling = {"generation_config": config}
    output = model.generate(**prompt, **(options | sampling))
    replies = output[:, input_ids.shape[1] :].tolist()
    requests = [request_text(ids, processor) for ids in input_ids.tolist() for _ in range(count)]
    openings = stored.get("openings", ()) if openings is None else openings
    items = [made_and_asked(r, t, required[0], processor, openings) for r, t in zip(replies, requests, strict=True)]
    whole = [i for i, (codes, text) in enumerate(items) if codes is not None and text]
    scores = torch.full([len(items)], float("-inf"), device=output.device)
    codes, texts = [items[i][0] for i in whole], [items[i][1] for i in whole]
    scores[whole] = read_back(model, processor, required[0], codes, texts, instruction)
    best = scores.view(-1, count).argmax(1)
    output = output.view(len(best), count, -1)[torch.arange(len(best), device=best.device), best]
    return output[:, : input_ids.shape[1] + longest(output[:, input_ids.shape[1] :], settings.eos_token_id)]


def settings_of(generation_config: Any, required: tuple[str, ...]) -> dict:
    """What a checkpoint says of reading back the one item that a reply must hold; {} if nothing."""
    stored = getattr(generation_config, "read_back", None) or {}
    return stored.get(required[0], {}) if len(required) == 1 else {}


@torch.inference_mode()
def read_back(
    model: Any, processor: Any, modality: str, codes: Sequence[np.ndarray], texts: Sequence[str], instruction: str
) -> torch.Tensor:
    """How surely the model tells each text from its item: log P(text | instruction, item) in nats, float32 `[N]`.

    Args:
        modality: name of a row of the modality table.
        codes: `[K, T]` each, as `processor.encode_media` gives and the language model writes them.
        texts: as many.
    """
    scores = []
    for start in range(0, len(codes), AT_ONCE):
        turns = [
            [
                {"role": "user", "content": [{"type": "text", "text": instruction}, {"type": modality, "codes": c}]},
                {"role": "assistant", "content": text},
            ]
            for c, text in zip(codes[start : start + AT_ONCE], texts[start : start + AT_ONCE], strict=True)
        ]
        batch = processor.apply_chat_template(
            turns, tokenize=True, return_dict=True, return_tensors="pt", return_labels=True
        ).to(model.device)
        labels = batch.pop("labels")[:, 1:]
        learned = labels != IGNORED
        hidden = model.get_decoder()(**batch).last_hidden_state[:, :-1]
        logits = model.get_output_embeddings()(hidden[learned]).float()
        told = -F.cross_entropy(logits, labels[learned], reduction="none")
        scores.append(told.new_zeros(learned.shape).masked_scatter(learned, told).sum(1))
    return torch.cat(scores) if scores else torch.zeros(0, device=model.device)


def request_text(ids: list[int], processor: Any) -> str:
    """The words of the last user turn of a prompt, media left out."""
    human, end = processor.tokenizer.convert_tokens_to_ids([HUMAN, END_OF_HUMAN])
    if human not in ids:
        return ""
    turn = ids[len(ids) - ids[::-1].index(human) :]
    turn = turn[: turn.index(end)] if end in turn else turn
    segments = parse(turn, processor.tokenizer, processor.specs)
    return " ".join(s.text for s in segments if s.text is not None).removeprefix(":").strip()


def made_and_asked(
    reply: list[int], request: str, modality: str, processor: Any, openings: Sequence[str] = ()
) -> tuple[np.ndarray | None, str | None]:
    """The first whole item of `modality` in a reply with the words that it answers; None for what there is not.

    They are the request's, what the reply says it heard or what was typed, without one of the `openings`. Words that a
    reply wrote and then spoke, all at once or one by one, are its own, unless they were typed behind an opening.
    """
    segments: list[Segment] = parse(reply, processor.tokenizer, processor.specs)
    own_words = find_modality(processor.specs, modality).has_voice
    if own_words:
        segments = join_items(segments, modality)
    before: dict[str, str] = {}
    for segment in segments:
        if segment.modality == modality and segment.problem is None:
            asked = before.get("transcript") or request
            opening = opening_of(asked, openings)
            typed = opening and "transcript" not in before
            if own_words and "text" in before and not typed:
                return segment.codes, before["text"]
            return segment.codes, asked[len(opening) :].strip() or None
        if segment.text is not None:
            before[segment.modality] = segment.text
    return None, None


def longest(replies: torch.Tensor, ends: int | list[int]) -> int:
    """Ids of the longest of padded replies `[B, L]`, each with the id of `ends` that ends it."""
    ended = torch.isin(replies, torch.as_tensor(ends, device=replies.device))
    lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, replies.shape[1])
    return int(lengths.max())
