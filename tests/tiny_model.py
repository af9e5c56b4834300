"""A tiny AnyGPT with random weights, made in process, and an independent check of what it writes."""

import torch
from transformers import AutoConfig

from modeling_anygpt import AnyGPTConfig, AnyGPTForCausalLM, ModalitySpec

HUMAN, ASSISTANT, EOH, EOS, PAD, SPACE, RESPONSE, INSTRUCTION = 40, 41, 42, 43, 0, 5, 98, 99
TEXT = 40  # ids 0..39 are text pieces
BACKBONES = ("llama", "qwen3", "gemma3_text")


def table() -> list[ModalitySpec]:
    """Fixed-length images, free speech up to 6 frames, music of 2 codebooks up to 5 frames."""
    image = ModalitySpec(
        *("image", "<i{}>", "<soim>", "<eoim>", 8), codes_per_item=6, image_size=16, codec="image_codec"
    )
    speech = ModalitySpec("speech", "<s{}>", "<sosp>", "<eosp>", 10, frame_rate=2, sampling_rate=100, max_seconds=3)
    music = ModalitySpec("music", "<m{}>", "<somu>", "<eomu>", 7, 2, frame_rate=1, sampling_rate=100, max_seconds=5)
    specs, next_id = [], 44
    for spec in (image, speech, music):
        row = spec.to_dict() | {"first_code_id": next_id, "start_token_id": next_id + spec.num_codes}
        specs.append(ModalitySpec.from_dict(row | {"end_token_id": next_id + spec.num_codes + 1}))
        next_id += spec.num_codes + 2
    assert next_id <= RESPONSE
    return specs


def text_config(kind: str = "llama", tied: bool = False, **changes):
    """Config of a backbone with 2 layers, 32 wide, 100 tokens."""
    sizes = dict(vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    more = dict(num_key_value_heads=2, head_dim=8, max_position_embeddings=512, tie_word_embeddings=tied)
    more |= dict(pad_token_id=PAD, bos_token_id=1, eos_token_id=EOS)
    return AutoConfig.for_model(kind, **sizes | more | changes)


def tiny_config(kind: str = "llama", tied: bool = False, **changes) -> AnyGPTConfig:
    return AnyGPTConfig(
        text_config=text_config(kind, tied, **changes),
        modalities=table(),
        human_token_id=HUMAN,
        assistant_token_id=ASSISTANT,
        eoh_token_id=EOH,
        response_token_id=RESPONSE,
        instruction_token_id=INSTRUCTION,
        space_token_ids=[SPACE],
    )


def tiny_model(kind: str = "llama", tied: bool = False, seed: int = 0, **changes) -> AnyGPTForCausalLM:
    """Random weights, large enough that the logits of tokens differ."""
    torch.manual_seed(seed)
    model = AnyGPTForCausalLM(tiny_config(kind, tied, **changes)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    return model


def faults(
    config, prompt: list[int], new: list[int], output, required=(), budget: int | None = None, eos: tuple = ()
) -> list[str]:
    """What is wrong with a reply, by a plain reading of its ids (shares no code with the grammar).

    Args:
        prompt, new: ids of one row; a prompt may end inside an open item. Everything after the first <eos> is ignored.
        eos: ids that end a reply besides <eos>.
        output: modalities allowed, of "text" and the table's names.
        required: modalities that must be there.
        budget: most new tokens; a reply shorter than it must end with <eos>.
    """
    by_start = {spec.start_token_id: spec for spec in config.modalities}
    owner = {}
    for spec in config.modalities:
        for codebook in range(spec.num_codebooks):
            for code in range(spec.codebook_size):
                owner[spec.first_code_id + code + spec.codebook_size * codebook] = (spec, codebook)
    ends = {spec.end_token_id: spec for spec in config.modalities}
    found, spec, count = [], None, 0
    for token in prompt:  # only to learn whether an item is open
        if token in by_start:
            spec, count = by_start[token], 0
        elif token in owner:
            count += 1
        else:
            spec = None
    problems, finished = [], False
    for place, token in enumerate(new):
        if finished:
            break
        if spec is not None:
            if token == spec.end_token_id:
                if count % spec.num_codebooks:
                    problems.append(f"{place}: {spec.name} ends inside a frame")
                if spec.codes_per_item is not None and count != spec.codes_per_item:
                    problems.append(f"{place}: {spec.name} of {count} codes")
                if count == 0 or (
                    spec.max_seconds and count > spec.max_seconds * spec.frame_rate * spec.num_codebooks
                ):
                    problems.append(f"{place}: {spec.name} of {count} codes")
                found.append(spec.name)
                spec = None
            elif owner.get(token) != (spec, count % spec.num_codebooks):
                problems.append(f"{place}: token {token} at code {count} of {spec.name}")
                spec = None
            else:
                count += 1
        elif token in by_start:
            spec, count = by_start[token], 0
            if spec.name not in output:
                problems.append(f"{place}: {spec.name} was not asked for")
        elif token in owner or token in ends:
            problems.append(f"{place}: code or end {token} in text")
        elif token in (config.human_token_id, config.assistant_token_id, config.eoh_token_id, config.pad_token_id):
            problems.append(f"{place}: structural token {token} in text")
        elif token in (config.eos_token_id, *eos):
            finished = True
        elif "text" not in output and token not in config.space_token_ids:
            problems.append(f"{place}: text {token} was not asked for")
    instruction, response = config.instruction_token_id, config.response_token_id
    marks = [token for token in new if token in (instruction, response)]
    if marks not in ([], [instruction, response], [response]):
        problems.append(f"transcript marks {marks}")
    if spec is not None:
        problems.append(f"{spec.name} left open")
    problems += [f"{name} is missing" for name in required if name not in found]
    if "text" not in output and (not found or len(found) != len(set(found)) or not finished):
        problems.append(f"items {found}, finished: {finished}")
    if budget is not None and len(new) < budget and not finished:
        problems.append("stopped without <eos>")
    return problems
