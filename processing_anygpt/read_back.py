"""The best of several replies: what the model made is shown back to it, and it says how well that answers the request.

One model goes both ways: it draws "a red circle", and it tells what a picture shows. So several pictures are sampled
for a request, and the one kept is that from which the model itself would most surely tell the request: the candidate c
with the highest

    log P(words | c) + LIKELY log P(c | request) + GIVEN (log P(c | request) - log P(c | request without its media))

DALL-E (arXiv 2102.12092, section 2.6) ranks its samples by a second model, CLIP; here painter and judge are one. What
was unlikely to be made and yet reads well has often fooled the reader, so both directions count, as in Li et al.
(arXiv 1510.03055). The last term is, by Bayes' rule and but for a constant, log P(media | c, words): how surely a
request's voice can be told from the reply. By words alone the voice that is clearest would win, not the one given.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor, LogitsProcessorList

from modeling_anygpt.generation_anygpt import resolve_request

from .conversation import IGNORED
from .parts import Segment, join_items, parse
from .vocabulary import END_OF_HUMAN, HUMAN, find_modality

# Small, as the codes of a reply depend on one another. Of 0.02 to 0.1 and 0.03 to 0.3 those that left most words and
# voices right, in replies of anygpt-tiny before and after the lesson of docs/training.md.
LIKELY, GIVEN = 0.02, 0.2
AT_ONCE = 16  # items in a forward pass
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
        openings: "draw", "read this aloud", in lower case: how requests begin. No item tells them, so they are left
            out; what was typed behind one is what a spoken reply has to say. None: what the checkpoint says.
        options: of `generate`.

    Returns:
        ids of prompt and reply, `[B, L + new]`, padded on the right.

    Raises:
        ValueError: several candidates where no item, or more than one, is required; no instruction; an option that
            needs or makes another number of replies.
    """
    settings = options.get("generation_config") or model.generation_config
    asked = options.get("output_modalities", getattr(settings, "output_modalities", None))
    required = resolve_request(
        model.config, asked, options.get("required_modalities"), options.get("generation_mode")
    ).required
    stored = settings_of(settings, required)
    count = stored.get("candidates", 1) if candidates is None else candidates
    if count < 1:
        raise ValueError(f"Got candidates={count}, need 1 or more.")
    prompt = {"input_ids": input_ids, "attention_mask": attention_mask}
    if count == 1:
        return model.generate(**prompt, **options)
    if len(required) != 1:
        raise ValueError(
            f"Got candidates={count} for a reply that must hold {' and '.join(required) or 'nothing but text'}. "
            "Candidates are compared by the one item that is asked for: require one, or leave candidates out."
        )
    if unfit := [name for name in ONE_REPLY if name in options]:
        raise ValueError(f"{unfit[0]} does not go with candidates={count}. Leave it out, or set candidates=1.")
    instruction = instruction or stored.get("instruction")
    if not instruction:
        raise ValueError(
            f"The checkpoint does not say with what words it is asked about {required[0]}. Pass instruction, for "
            'example "Describe this picture."'
        )
    sampling = {"num_return_sequences": count, "do_sample": True}
    if "generation_config" in options:  # transformers wants all settings in the one that is given, or none
        settings = copy.deepcopy(settings)
        settings.update(**sampling)
        sampling = {"generation_config": settings}
    witness = Witness()
    watched = LogitsProcessorList([*(options.pop("logits_processor", None) or ()), witness])
    output = model.generate(**prompt, **(options | sampling), logits_processor=watched)
    # A generation config that is given may leave the ends to the checkpoint, as `generate` does.
    ends = model.generation_config.eos_token_id if settings.eos_token_id is None else settings.eos_token_id
    start = input_ids.shape[1]
    replies = [ids[: longest(ids[None], ends)].tolist() for ids in output[:, start:]]
    given = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    prompts = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, given, strict=True) for _ in range(count)]
    openings = stored.get("openings", ()) if openings is None else openings
    likely = witness.likelihood(output, [len(reply) for reply in replies])
    scores = score(model, processor, required[0], prompts, replies, likely, instruction, openings)
    best = scores.view(-1, count).argmax(1)
    output = output.view(len(best), count, -1)[torch.arange(len(best), device=best.device), best]
    return output[:, : start + longest(output[:, start:], ends)]


def settings_of(generation_config: Any, required: tuple[str, ...]) -> dict:
    """What a checkpoint says of reading back the one item that a reply must hold; {} if nothing."""
    stored = getattr(generation_config, "read_back", None) or {}
    return stored.get(required[0], {}) if len(required) == 1 else {}


class Witness(LogitsProcessor):
    """Changes nothing and remembers how likely each id was that `generate` drew, before grammar and presets: a pass
    over the finished replies would cost as much again."""

    def __init__(self):
        self.last, self.seen = None, []  # log P [B, V] of the next id, and of each id drawn [B]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.draw(input_ids)
        self.last = scores.float().log_softmax(-1)
        return scores

    def draw(self, ids: torch.Tensor) -> None:
        if self.last is not None:
            self.seen.append(self.last.gather(1, ids[:, -1:].to(self.last.device))[:, 0])

    def likelihood(self, output: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """log P(reply | prompt) in nats, float32 `[N]`. output: of `generate`; lengths: of the replies, in ids."""
        self.draw(output)
        seen = torch.stack(self.seen, 1)
        within = torch.arange(seen.shape[1], device=seen.device) < torch.tensor(lengths, device=seen.device)[:, None]
        return seen.where(within, 0.0).sum(1)


def score(
    model: Any,
    processor: Any,
    modality: str,
    prompts: Sequence[list[int]],
    replies: Sequence[list[int]],
    likely: torch.Tensor,
    instruction: str,
    openings: Sequence[str] = (),
) -> torch.Tensor:
    """What a reply to a prompt is chosen by (above): float32 `[N]`, in nats; -inf for one without a whole item.

    Args:
        modality: the item that was asked for; instruction, openings: as for `generate_best`.
        prompts, replies: ids, without padding; likely: log P of each reply to its prompt, in nats, `[N]`.
    """
    items = [
        made_and_asked(reply, request_text(prompt, processor), modality, processor, openings)
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    whole = [i for i, (codes, text) in enumerate(items) if codes is not None and text]
    scores = torch.full([len(items)], float("-inf"), device=model.device)
    codes, texts = [items[i][0] for i in whole], [items[i][1] for i in whole]
    prompts, replies = [prompts[i] for i in whole], [replies[i] for i in whole]
    likely = likely[whole].to(scores.device)
    total = read_back(model, processor, modality, codes, texts, instruction) + LIKELY * likely
    words = [without_media(prompt, processor) for prompt in prompts]
    if words != prompts:
        total += GIVEN * (likely - likelihood(model, words, replies))
    scores[whole] = total
    return scores


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
        )
        scores.append(told(model, batch["input_ids"], batch["attention_mask"], batch["labels"] != IGNORED))
    return torch.cat(scores) if scores else torch.zeros(0, device=model.device)


@torch.inference_mode()
def likelihood(model: Any, prompts: Sequence[list[int]], replies: Sequence[list[int]]) -> torch.Tensor:
    """log P(reply | prompt) in nats, float32 `[N]`, as the model says it, without grammar and presets."""
    scores = []
    for start in range(0, len(prompts), AT_ONCE):
        pairs = list(zip(prompts[start : start + AT_ONCE], replies[start : start + AT_ONCE], strict=True))
        ids = pad_sequence([torch.tensor(prompt + reply) for prompt, reply in pairs], batch_first=True)
        place = torch.arange(ids.shape[1])
        lengths, begins = torch.tensor([[len(prompt + reply), len(prompt)] for prompt, reply in pairs]).T[..., None]
        mask = place < lengths
        scores.append(told(model, ids, mask.long(), mask & (place >= begins)))
    return torch.cat(scores) if scores else torch.zeros(0, device=model.device)


def told(model: Any, ids: torch.Tensor, attention_mask: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """The sum of log P of the ids that are `counted`, in nats, float32 `[B]`; all `[B, L]`."""
    ids, attention_mask, counted = (tensor.to(model.device) for tensor in (ids, attention_mask, counted[:, 1:]))
    hidden = model.get_decoder()(input_ids=ids, attention_mask=attention_mask).last_hidden_state[:, :-1]
    logits = model.get_output_embeddings()(hidden[counted]).float()
    log_p = -F.cross_entropy(logits, ids[:, 1:][counted], reduction="none")
    return log_p.new_zeros(counted.shape).masked_scatter(counted, log_p).sum(1)


def without_media(prompt: list[int], processor: Any) -> list[int]:
    """A prompt whose last user turn keeps its words only, with the space before a medium gone too; as it is, if the
    turn has no words."""
    if not request_text(prompt, processor):
        return prompt
    ends = {spec.start_token_id: spec.end_token_id for spec in processor.specs}
    (human,) = processor.tokenizer.convert_tokens_to_ids([HUMAN])
    position = len(prompt) - prompt[::-1].index(human)
    kept = prompt[:position]
    while position < len(prompt):
        token = prompt[position]
        if token in ends and ends[token] in prompt[position:]:
            position = prompt.index(ends[token], position)
            if not processor.tokenizer.decode(kept[-1:]).strip():
                kept.pop()
        else:
            kept.append(token)
        position += 1
    return kept


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
            opening = max((o for o in openings if asked.lower().startswith(f"{o} ")), key=len, default="")
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
