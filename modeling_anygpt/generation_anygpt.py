"""Generation as a grammar: no reply is malformed, cut inside a frame or in a modality nobody asked for.

A row of the batch is either in text or inside an item of modality m with p codes written. Inside, only codes of
codebook p mod K are legal, and the end token only at whole frames within the item's shortest and longest length. In
text, a start token is legal only for a modality that was asked for and while the token budget still holds its shortest
item. The state is read off the ids at every step, so it survives beam reordering, left padding, continued prompts and
speculative decoding, and no step waits for the device. B batch, L tokens so far, V vocabulary, M modalities.
"""

from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch.nn.functional import pad
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList

from .configuration_anygpt import AnyGPTConfig, ModalitySpec, find_modality

NO_LIMIT = 2**31 - 1
NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
REQUEST_KEYS = ("output_modalities", "required_modalities", "generation_mode", "modality_presets")


@dataclass(frozen=True)
class OutputRequest:
    """What a reply may and must hold, by names of the modality table; `text` says whether free text is legal."""

    text: bool
    allowed: tuple[str, ...]
    required: tuple[str, ...]


def specs_with_ids(config: AnyGPTConfig) -> list[ModalitySpec]:
    """The rows of the table that the vocabulary has tokens for."""
    return [spec for spec in config.modalities if spec.first_code_id is not None]


def resolve_request(config: AnyGPTConfig, output_modalities, required_modalities, generation_mode) -> OutputRequest:
    """Turn the arguments of `generate` into an `OutputRequest`; see there for what they mean.

    Raises:
        ValueError: unknown names, or arguments that contradict each other.
    """
    names = [spec.name for spec in specs_with_ids(config)]
    for argument in (output_modalities, required_modalities):
        for name in [argument] if isinstance(argument, str) else argument or ():
            if name not in ("text", *names):
                find_modality(config.modalities, name)  # raises with the known names
                raise ValueError(f"Modality {name!r} has no token ids: `config.assign_token_ids(tokenizer)` first.")
    asked = (output_modalities,) if isinstance(output_modalities, str) else output_modalities
    required = (required_modalities,) if isinstance(required_modalities, str) else tuple(required_modalities or ())
    if "text" in required:
        raise ValueError(
            "Got 'text' in required_modalities, which names items. Text alone: output_modalities='text'; text and an "
            "item: both in output_modalities, the item here."
        )
    if asked is not None and not asked:
        raise ValueError(f"output_modalities is empty. Allowed: {', '.join(['text', *names])}.")
    if generation_mode is not None:
        # transformers' pipeline knows only text, image and audio.
        families = {
            "text": ["text"],
            "image": [spec.name for spec in config.modalities if spec.image_size is not None],
            "audio": [spec.name for spec in config.modalities if spec.is_audio],
            **{name: [name] for name in names},
        }
        if generation_mode not in families:
            raise ValueError(f"Unknown generation_mode {generation_mode!r}. Allowed: {', '.join(families)}.")
        family = families[generation_mode]
        if asked is None:
            asked = family
        elif not set(family) & set(asked):
            raise ValueError(
                f"generation_mode={generation_mode!r} means {' or '.join(family) or 'nothing this model has'}, but "
                f"output_modalities={tuple(asked)}. Drop one of the two."
            )
        else:
            required += tuple(name for name in asked if name in family and name not in ("text", *required))
    asked = ("text", *names) if asked is None else tuple(asked)
    surplus = [name for name in required if name not in asked]
    if surplus:
        raise ValueError(f"required_modalities {surplus} are not among output_modalities={asked}. Add them there.")
    allowed = tuple(name for name in names if name in asked)
    if "text" not in asked and len(allowed) == 1:
        required = allowed
    return OutputRequest("text" in asked, allowed, tuple(name for name in allowed if name in required))


class ModalityGrammar(LogitsProcessor):
    """Sets the logits of every illegal next token to -inf, for each row by its own state.

    Args:
        config: the modality table and control token ids.
        request: what the reply may and must hold.
        eos_token_ids: ids that end a reply.
        max_length: tokens of prompt and reply together, the budget everything must be closed in.
        prompt_length: tokens of the (padded) prompt; items completed after it count as written.
        device: where the logits live.
        presets: applied to what is left of the logits, or None.
    """

    def __init__(
        self,
        config: AnyGPTConfig,
        request: OutputRequest,
        eos_token_ids: list[int],
        max_length: int,
        prompt_length: int = 0,
        device: torch.device | str = "cpu",
        presets: "ModalityPresets | None" = None,
    ):
        specs = specs_with_ids(config)
        size = config.vocab_size
        highest = max(max(s.first_code_id + s.num_codes - 1, s.start_token_id, s.end_token_id) for s in specs)
        if highest >= size:
            raise ValueError(
                f"The modality table uses token id {highest}, but the model has {size} embedding rows. Call "
                "`model.resize_token_embeddings(len(tokenizer))`."
            )
        if not all(0 <= i < size for i in eos_token_ids):
            raise ValueError(
                f"Got eos_token_id={eos_token_ids}, allowed are rows of the vocabulary, 0..{size - 1}. For longer "
                "replies set min_new_tokens."
            )
        self.specs, self.request, self.presets = specs, request, presets
        self.max_length, self.prompt_length = max_length, prompt_length
        self.allowed = [spec.name in request.allowed for spec in specs]
        self.required = [spec.name in request.required for spec in specs]
        # Without text at least one item must come, and none twice.
        self.only_items = not request.text
        self.shortest = [spec.min_frames * spec.num_codebooks + 2 for spec in specs]  # with start and end, in tokens

        def tensor(values, dtype=torch.long):
            return torch.tensor(values, dtype=dtype, device=device)

        self.allowed_mask, self.required_mask = tensor(self.allowed, torch.bool), tensor(self.required, torch.bool)
        self.some_required = any(self.required)
        self.cost = tensor(self.shortest)
        cheapest = [i for i in range(len(specs)) if self.allowed[i]]
        cheapest = min(cheapest, key=lambda i: self.shortest[i], default=-1)
        self.cheapest_mask = tensor([i == cheapest for i in range(len(specs))], torch.bool)
        self.numbers = torch.arange(1, len(specs) + 1, device=device)

        # What each vocabulary row is, and rows of what is legal: text, nothing, and per modality its codes by
        # codebook, the codes of a new frame or the end, and the end alone.
        is_code = torch.zeros(size, dtype=torch.bool)
        opens = torch.zeros(size, dtype=torch.long)
        text = torch.ones(size, dtype=torch.bool)
        legal = [text, torch.zeros_like(text)]
        columns = [(1, 0, NO_LIMIT, 0, 0, 0)]
        for index, spec in enumerate(specs):
            books, first = spec.num_codebooks, len(legal)
            opens[spec.start_token_id] = index + 1
            for codebook in range(books):
                row = torch.zeros(size, dtype=torch.bool)
                start = spec.token_id(0, codebook)
                row[start : start + spec.codebook_size] = True
                is_code |= row
                legal.append(row)
            end = torch.zeros(size, dtype=torch.bool)
            end[spec.end_token_id] = True
            legal += [legal[first] | end, end]
            text[[spec.start_token_id, spec.end_token_id]] = False
            longest = min(spec.max_frames or NO_LIMIT, NO_LIMIT) * books
            columns.append((books, spec.min_frames * books, longest, first, first + books, first + books + 1))
        # Per modality, text first: codebooks, fewest and most codes, and the places of its rows above.
        self.columns = tensor(columns)
        text &= ~is_code
        structural = [config.human_token_id, config.assistant_token_id, config.eoh_token_id, config.eos_token_id]
        structural += [config.pad_token_id]
        structural += [config.text_config.bos_token_id, config.instruction_token_id, config.response_token_id]
        text[[i for i in structural if i is not None] + list(eos_token_ids)] = False
        if self.only_items:
            spaces = torch.zeros(size, dtype=torch.bool)
            spaces[torch.tensor(config.space_token_ids, dtype=torch.long)] = True
            text &= spaces
        self.is_code, self.opens = is_code.to(device), opens.to(device)
        self.illegal = ~torch.stack(legal).to(device)  # [rows, V]

        # Tokens of the text state whose legality changes: starts, <eos>, and the two marks of a transcript.
        self.eos_count = len(eos_token_ids)
        dynamic = [spec.start_token_id for spec in specs] + list(eos_token_ids)
        self.transcripts = request.text and None not in (config.instruction_token_id, config.response_token_id)
        if self.transcripts:
            dynamic += [config.instruction_token_id, config.response_token_id]
        roles = [config.human_token_id, config.assistant_token_id, config.eoh_token_id]
        roles += [config.instruction_token_id, config.response_token_id]
        # -1, which no token is, where the vocabulary has no transcripts: the released base model's.
        self.instruction_id = -1 if config.instruction_token_id is None else config.instruction_token_id
        self.is_role = torch.zeros(size, dtype=torch.bool, device=device)
        self.is_role[tensor([i for i in roles if i is not None])] = True
        self.is_space = torch.zeros_like(self.is_role)
        self.is_space[tensor(config.space_token_ids)] = True
        self.dynamic = tensor(dynamic)
        self.ends = tensor([spec.end_token_id for spec in specs])
        self.neutral_id = eos_token_ids[0]  # stands for an empty prompt

    def position(self, input_ids: torch.LongTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ids [B, L] -> open modality [B] (0: text, m: the m-th of the table) and codes written in it [B]."""
        anchor, last = self._last(input_ids, ~self.is_code[input_ids])
        return self.opens[anchor], input_ids.shape[1] - last

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """ids [B, L] and logits [B, V] of the next token -> logits with -inf at illegal tokens."""
        remaining = self.max_length - input_ids.shape[1]  # tokens still to come, this one included
        if input_ids.shape[1] == 0:
            input_ids = pad(input_ids, (1, 0), value=self.neutral_id)
        modality, written = self.position(input_ids)
        text = modality == 0
        done, missing, owed = self._owed(input_ids, modality, text)

        # Inside an item. A further code must leave room for its frame, the end token, <eos> and what is owed.
        books, shortest, longest, code_row, either_row, end_row = self.columns[modality].unbind(1)
        place = written % books
        can_end = (place == 0) & (written >= shortest)
        closed = torch.maximum(shortest, written + books)  # codes at the next chance to end
        must_end = (written >= longest) | (closed - written + 2 + owed > remaining)
        row = torch.where(can_end, torch.where(must_end, end_row, either_row), code_row + place)  # 0 in text

        # In text. `pressed`: the words are over, only tokens that settle what is owed still fit.
        pressed = None
        if missing is None:
            starts, stop = (self.allowed_mask & (self.cost < remaining)) & text[:, None], text
        else:
            pressed = (owed > 0) & (owed >= remaining - 1)
            others = owed[:, None] - missing * self.cost  # what stays owed if this item is started
            starts = torch.where(pressed[:, None], missing, self.cost + others < remaining)
            starts = starts & text[:, None] & self.allowed_mask
            stop = text & (owed == 0)
        if self.only_items:
            starts = starts & ~done
            pressed = pressed | stop | self.is_space[input_ids[:, -1]]  # no two spaces, none at the end
        extra = []
        if self.transcripts:
            unfinished = text & (self._last(input_ids, self.is_role[input_ids])[0] == self.instruction_id)
            starts, stop = starts & ~unfinished[:, None], stop & ~unfinished
            late = unfinished & (owed + 2 >= remaining)
            pressed = late if pressed is None else pressed | late
            begin = text & ~unfinished & self._reply_begins(input_ids) & (owed + 3 < remaining)
            extra = [begin[:, None], unfinished[:, None]]
        if pressed is not None:
            row = torch.where(text & pressed, 1, row)

        illegal = self.illegal[row]  # [B, V], a copy
        illegal[:, self.dynamic] = ~torch.cat([starts, stop[:, None].expand(-1, self.eos_count), *extra], 1)
        scores = scores.masked_fill(illegal, float("-inf"))
        # Where the processors before took every legal token (min_new_tokens after the last item), they must give way.
        nothing = scores.amax(1, keepdim=True) == float("-inf")
        scores = scores.masked_fill(nothing & ~illegal, 0.0)
        return scores if self.presets is None else self.presets(input_ids, scores, modality)

    def _reply_begins(self, input_ids):
        """Whether nothing but one space was written yet, [B] or for all: the only place where a transcript opens."""
        new = input_ids.shape[1] - self.prompt_length
        return self.is_space[input_ids[:, -1]] if new == 1 else new <= 0

    def _last(self, input_ids, mask):
        """ids and mask [B, L] -> the last id under the mask (the first of a row with none) and its 1-based place (0
        where there is none), both [B]."""
        steps = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        place = (mask * steps).amax(1)
        return input_ids.gather(1, (place - 1).clamp(min=0)[:, None])[:, 0], place

    def _owed(self, input_ids, modality, text):
        """What must still come: items done [B, M], items missing [B, M], and the tokens these take at least [B]
        (None, None, 0 where the reply may be text alone)."""
        if not (self.only_items or self.some_required):
            return None, None, 0
        done = (input_ids[:, self.prompt_length :, None] == self.ends).any(1)
        if self.some_required:
            missing = self.required_mask & ~done & (self.numbers != modality[:, None])
        else:  # one item, whichever: the cheapest is what it takes at least
            missing = self.cheapest_mask & (text & ~done.any(1))[:, None]
        return done, missing, (missing * self.cost).sum(1)

    def check_prompt(self, prompt: torch.Tensor) -> None:
        """Raise a ValueError when the prompt [B, L] leaves no well-formed reply. Once per `generate`, not per step."""
        budget = self.max_length - prompt.shape[1]
        if prompt.shape[1] == 0:
            prompt = pad(prompt, (1, 0), value=self.neutral_id)
        modality, written = (values.tolist() for values in self.position(prompt))
        unfinished = (self._last(prompt, self.is_role[prompt])[0] == self.instruction_id).tolist()
        names = [spec.name for spec in self.specs]
        for index, codes, transcript in zip(modality, written, unfinished, strict=True):
            current = names[index - 1] if index else None
            costs = dict(zip(names, self.shortest, strict=True))
            need = sum(costs[name] for name in self.request.required if name != current)
            if self.only_items and not self.request.required and current is None:
                need = min(costs[name] for name in self.request.allowed)
            what = "what was asked for"
            if current is not None:
                spec, what = self.specs[index - 1], f"the open {current!r}"
                if current not in self.request.allowed:
                    raise ValueError(
                        f"The prompt ends inside an open {current!r}, which is not among the output modalities "
                        f"{('text',) * self.request.text + self.request.allowed}. Add it or drop {spec.start_token!r}."
                    )
                books = spec.num_codebooks
                need += max(spec.min_frames * books, -(-codes // books) * books) - codes + 1
            # <eos>, and before it the mark that ends an open transcript; free text needs neither.
            need += (need > 0) * (1 + (self.transcripts and transcript))
            if need > budget:
                raise ValueError(
                    f"The budget of {budget} new tokens is too small for {what}: at least {need} are needed with the "
                    f"end tokens. Set max_new_tokens={need} or more."
                )


class ModalityPresets:
    """Repetition penalty, temperature, top-k and top-p by the modality a row is in; equal to transformers' own
    processors where all presets are the same.

    Args:
        presets: of text and of every modality in the order of the table: dicts of `temperature`, `top_k` (0: off),
            `top_p` and `repetition_penalty`.
        do_sample: without it only the repetition penalty matters.
        device: where the logits live.
        least: tokens that top-k and top-p leave at least.
    """

    def __init__(self, presets: list[dict], do_sample: bool, device: torch.device | str = "cpu", least: int = 1):
        def column(key):  # None where it would change nothing
            values = [preset[key] for preset in presets]
            neutral = all(value == NEUTRAL[key] for value in values)
            return None if neutral else torch.tensor(values, device=device)[:, None]

        self.penalty = column("repetition_penalty")
        self.temperature, self.top_k, self.top_p = (
            column(key) if do_sample else None for key in ("temperature", "top_k", "top_p")
        )
        if self.top_k is not None:
            self.top_k = torch.where(self.top_k == 0, NO_LIMIT, self.top_k.clamp(min=least))
        top_ks = [preset["top_k"] and max(preset["top_k"], least) for preset in presets]
        self.least = least
        self.most = max(top_ks) if min(top_ks) > 0 else NO_LIMIT  # sorted logits that are enough for every preset

    def __call__(self, input_ids, scores, modality):
        """ids [B, L], logits [B, V] with illegal ones -inf, modality of the rows [B] -> logits to sample from."""
        if self.penalty is not None:
            seen = scores.gather(1, input_ids)
            penalty = self.penalty[modality]
            scores = scores.scatter(1, input_ids, torch.where(seen < 0, seen * penalty, seen / penalty))
        if self.temperature is not None:
            scores = scores / self.temperature[modality]
        if self.top_k is not None or self.top_p is not None:
            if self.most < scores.shape[1]:
                best = scores.topk(self.most).values  # [B, n], falling
            else:
                best = scores.sort(descending=True).values
            rank = torch.arange(best.shape[1], device=scores.device)
            if self.top_k is not None:
                best = best.masked_fill(rank >= self.top_k[modality], float("-inf"))
            if self.top_p is not None:
                chances = best.softmax(-1)
                before = chances.cumsum(-1) - chances  # mass of the better tokens
                best = best.masked_fill((before >= self.top_p[modality]) & (rank >= self.least), float("-inf"))
            lowest = torch.where(best == float("-inf"), float("inf"), best).amin(-1, keepdim=True)
            scores = scores.masked_fill(scores < lowest, float("-inf"))
        return scores


def _sampling_values(generation_config) -> dict:
    """The sampling settings a generation config states."""
    values = {key: getattr(generation_config, key, None) for key in NEUTRAL}
    return {key: value for key, value in values.items() if value is not None}


class AnyGPTGenerationMixin(GenerationMixin):
    """`generate` under the modality grammar, with one sampling preset per modality."""

    def generate(
        self,
        inputs=None,
        generation_config=None,
        *args,
        output_modalities=None,
        required_modalities=None,
        generation_mode=None,
        modality_presets=None,
        **kwargs,
    ):
        """As `GenerationMixin.generate`, plus:

        Args:
            output_modalities: what the reply may hold, of "text" and the names of the modality table; None: the
                `output_modalities` of the generation config, else everything. Without "text" the reply is items only:
                at least one, none twice, nothing around them.
            required_modalities: items, by the names of the modality table, that must be in the reply before it may
                end.
            generation_mode: "text", "image", "audio" (transformers' pipeline) or a modality's name: the reply is that
                alone, or must hold it when `output_modalities` is given as well.
            modality_presets: modality (or "text") -> dict of temperature, top_k, top_p, repetition_penalty, over those
                of the generation config. The same keys given directly rule in every modality.

        Returns:
            As `GenerationMixin.generate`; every item in the new tokens is complete, also where `max_new_tokens` ends
            the reply (custom stopping criteria still stop anywhere).

        Raises:
            ValueError: unknown modality; a prompt that leaves a modality open which was not asked for; a budget of new
                tokens too small for what was asked for.
        """
        request = (output_modalities, required_modalities, generation_mode, modality_presets)
        kwargs |= {key: value for key, value in zip(REQUEST_KEYS, request, strict=True) if value is not None}
        return super().generate(inputs, generation_config, *args, **kwargs)

    def _prepare_generation_config(self, generation_config, **kwargs):
        """Take our arguments out of the keywords and leave what they mean in the config that `generate` goes by."""
        asked = {key: kwargs.pop(key) for key in REQUEST_KEYS if key in kwargs}
        given = _sampling_values(generation_config) | {k: kwargs[k] for k in NEUTRAL if kwargs.get(k) is not None}
        prepared, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        if not specs_with_ids(self.config):
            if asked:
                raise ValueError(f"{sorted(asked)} need a modality table with token ids in the config.")
            return prepared, model_kwargs
        for key in ("output_modalities", "required_modalities", "generation_mode"):
            setattr(prepared, key, asked.get(key, getattr(prepared, key, None)))
        if "output_modalities" not in asked and "generation_mode" in asked:
            prepared.output_modalities = None  # the mode rules over the default of the checkpoint
        stored = getattr(prepared, "modality_presets", None) or {}
        own = _sampling_values(self.generation_config)
        prepared.modality_presets = self._merge_presets(own, stored, asked.get("modality_presets") or {}, given)
        for key, value in NEUTRAL.items():  # ours replace transformers' own, which know no modality
            setattr(prepared, key, value)
        return prepared, model_kwargs

    def _merge_presets(self, own: dict, stored: dict, asked: dict, given: dict) -> dict[str, dict]:
        names = ["text", *(spec.name for spec in self.config.modalities)]
        for preset in (stored, asked):
            for name, values in preset.items():
                if name not in names:
                    raise ValueError(f"modality_presets: unknown modality {name!r}. Known: {', '.join(names)}.")
                if not isinstance(values, dict):
                    raise ValueError(
                        f"modality_presets[{name!r}]: got {values!r}, need a dict of {', '.join(NEUTRAL)}."
                    )
                unknown = sorted(set(values) - set(NEUTRAL))
                if unknown:
                    raise ValueError(
                        f"modality_presets[{name!r}]: unknown keys {unknown}. Allowed: {', '.join(NEUTRAL)}."
                    )
        merged = {n: {**NEUTRAL, **own, **stored.get(n, {}), **given, **asked.get(n, {})} for n in names}
        for name, values in merged.items():
            top_k = values["top_k"]
            if not all(isinstance(v, Real) for v in values.values()) or not isinstance(top_k, Integral) or top_k < 0:
                raise ValueError(f"Preset of {name!r}: values are numbers, top_k a whole one (0: off), got {values}.")
            if not (values["temperature"] > 0 and values["repetition_penalty"] > 0 and 0 < values["top_p"] <= 1):
                raise ValueError(
                    f"Preset of {name!r}: temperature and repetition_penalty must be positive, top_p in (0, 1], got "
                    f"{values}. For greedy choice set do_sample=False, or top_k=1 in one modality."
                )
        return merged

    def _get_logits_processor(
        self,
        generation_config,
        input_ids_seq_length=None,
        encoder_input_ids=None,
        prefix_allowed_tokens_fn=None,
        logits_processor=None,
        device=None,
        **kwargs,
    ):
        """transformers' processors, the caller's, then the grammar with the presets: nothing may undo it."""
        ours = []
        presets = getattr(generation_config, "modality_presets", None)
        if generation_config.is_assistant:
            presets = None  # `logits_processor` holds the grammar of the model it drafts for, with that one's budget
        specs = specs_with_ids(self.config)
        if specs and input_ids_seq_length is None:  # continuous batching, which knows of a row its last id only
            raise ValueError(
                "generate_batch runs without the grammar of modalities, so its replies may be malformed. Use generate "
                "with a padded batch, or a server for the result of `anygpt export --to vllm`."
            )
        if specs and isinstance(presets, dict) and "text" in presets:
            request = resolve_request(
                self.config,
                generation_config.output_modalities,
                generation_config.required_modalities,
                generation_config.generation_mode,
            )
            eos = generation_config._eos_token_tensor
            if eos is None:
                raise ValueError("No eos_token_id: set it in the generation config, replies end with it.")
            table = [presets["text"], *(presets[spec.name] for spec in specs)]
            # As transformers' own: beams need a way to go on beside every end of the reply.
            least = len(eos) + 1 if (generation_config.num_beams or 1) > 1 else 1
            grammar = ModalityGrammar(
                self.config,
                request,
                eos.tolist(),
                generation_config.max_length,
                input_ids_seq_length,
                device,
                ModalityPresets(table, generation_config.do_sample, device, least),
            )
            prompt = encoder_input_ids if encoder_input_ids.ndim == 2 else encoder_input_ids.new_empty(1, 0)
            grammar.check_prompt(prompt.long())
            ours = [grammar]
        return super()._get_logits_processor(
            generation_config,
            input_ids_seq_length=input_ids_seq_length,
            encoder_input_ids=encoder_input_ids,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            logits_processor=LogitsProcessorList([*(logits_processor or []), *ours]),
            device=device,
            **kwargs,
        )


__all__ = ["AnyGPTGenerationMixin", "ModalityGrammar", "ModalityPresets", "OutputRequest", "resolve_request"]
