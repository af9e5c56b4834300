"""AnyGPTProcessor: messages and media in, token ids out; generated ids in, typed parts out.

The codecs are models. They are loaded when first needed, from the subfolders (or hub ids) that the modality table
names.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from .batching import Batching, share_out, splice
from .codec_io import add_acoustic_codes, check_codec, decode, encode, is_audio, paint
from .codec_shelf import CodecShelf
from .conversation import (
    IGNORED,
    Piece,
    chat_template_for,
    checked_dict,
    encode_pieces,
    own_block,
    render,
    render_text,
    text_only,
)
from .media import INLINE, MAX_SECONDS, array_to_image, find_source, image_to_array, load_audio, load_image
from .parts import (
    AudioPart,
    ImagePart,
    MusicPart,
    Part,
    SpeechPart,
    TextPart,
    TranscriptPart,
    UnfinishedPart,
    join_items,
    parse,
)
from .vocabulary import ASSISTANT, Modality, codes_to_ids, find_modality, modalities_from_tokenizer, text_ids

AUDIO_PARTS = {"speech": SpeechPart, "music": MusicPart}  # other audio modalities give a plain AudioPart


class AnyGPTProcessor(ProcessorMixin):
    """Turns conversations with speech, pictures and music into token ids, and generated ids into media.

    Args:
        tokenizer: a fast tokenizer that holds the tokens of the modality table (`add_modality_tokens`).
        modalities: rows of the modality table, as dicts (those of the model's config).
        system_prompt: system line of conversations that bring none.
        chat_template: what `tokenizer.apply_chat_template` uses for text-only conversations elsewhere. The processor
            itself renders without it, so that text can't spell control tokens.
        turn_separator: what stands between turns: a newline for chat models, a space for base models.
    """

    def __init__(
        self,
        tokenizer: Any,
        modalities: list[dict[str, Any]] | None = None,
        system_prompt: str | None = None,
        chat_template: str | None = None,
        turn_separator: str = "\n",
    ):
        rows = [row if isinstance(row, dict) else dataclasses.asdict(row) for row in modalities or []]
        self.specs = modalities_from_tokenizer(tokenizer, [Modality.from_dict(row) for row in rows])
        self.modalities = [dataclasses.asdict(spec) for spec in self.specs]
        self.system_prompt = system_prompt
        self.turn_separator = turn_separator
        self.shelf = CodecShelf()
        super().__init__(tokenizer, chat_template=chat_template or chat_template_for(tokenizer, turn_separator))

    def __repr__(self) -> str:  # the inherited one prints every added token, at every load
        return f"AnyGPTProcessor(modalities: {', '.join(spec.name for spec in self.specs)})"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **kwargs) -> "AnyGPTProcessor":
        """As ProcessorMixin's (which takes the keywords); remembers where the codecs are."""
        options = {key: value for key, value in kwargs.items() if key in FROM_PRETRAINED_OPTIONS and value is not None}
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor.shelf = CodecShelf(str(pretrained_model_name_or_path), options)
        return processor

    def save_pretrained(self, save_directory: str, push_to_hub: bool = False, **kwargs) -> list[str]:
        """As ProcessorMixin's (which takes the keywords); codecs in subfolders are copied along."""
        names = [name for spec in self.specs for name in (spec.codec, spec.decoder) if name]
        for name in names:
            if "/" not in name and self.shelf.has(name):
                self.shelf.save(name, Path(save_directory) / name)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    # Codecs

    def codec(self, modality: str) -> Any:
        """The codec of a modality, loaded at the first call."""
        spec = find_modality(self.specs, modality)
        codec = self.shelf.get(spec.codec)
        check_codec(spec, codec.config)
        return codec

    def set_codec(self, modality: str, codec: Any, decoder: Any = None) -> None:
        """Use `codec` (and the model between its codes and the media) for a modality instead of the checkpoint's."""
        spec = find_modality(self.specs, modality)
        self.shelf.put(spec.codec, codec)
        if decoder is not None:
            if spec.decoder is None:
                raise ValueError(f"The modality table has no decoder for {modality}. Name one there first.")
            self.shelf.put(spec.decoder, decoder)

    def to(self, device: str | torch.device) -> "AnyGPTProcessor":
        """Moves the codecs, loaded ones and those to come."""
        self.shelf.device = torch.device(device)
        for model in self.shelf.models.values():
            model.to(self.shelf.device)
        return self

    def encode_media(
        self,
        modality: str,
        items: Sequence[Any],
        sampling_rate: int | None = None,
        allow_urls: bool = False,
        max_seconds: float = MAX_SECONDS,
    ) -> list[np.ndarray]:
        """Media to the codes that the language model sees.

        Args:
            modality: name of a row of the modality table.
            items: paths, bytes, arrays, PIL images, `(array, sampling_rate)` pairs, or content blocks.
            sampling_rate: Hz of audio arrays that come without one.
            allow_urls: fetch items that are URLs.
            max_seconds: longest sound accepted, s.

        Returns:
            Codes `[K, T]` int64 of each item, K = `num_codebooks` of the table.
        """
        spec = find_modality(self.specs, modality)
        if isinstance(items, (str, bytes, dict)) or not isinstance(items, Iterable):
            raise ValueError(f"Got items of type {type(items).__name__}, need a list of them, also of a single one.")
        items = list(items)
        results: list[Any] = [_given_codes(spec, item) for item in items]
        todo = [index for index, codes in enumerate(results) if codes is None]
        if todo:
            codec = self.codec(modality)
            arrays = [_load(spec, items[i], sampling_rate, allow_urls, max_seconds) for i in todo]
            for index, codes in zip(todo, encode(codec, arrays), strict=True):
                if len(codes) < spec.num_codebooks:
                    raise ValueError(
                        f"The {modality} codec has {len(codes)} of the {spec.num_codebooks} codebooks that the "
                        "modality table says. Put the codec that belongs to this checkpoint in its place."
                    )
                results[index] = codes[: spec.num_codebooks]
        return results

    def decode_codes(
        self,
        modality: str,
        codes: Sequence[Any],
        voice: Any = None,
        steps: int | None = None,
        generator: torch.Generator | None = None,
        guidance: float | None = None,
        negative_codes: Any = None,
    ) -> list[Part]:
        """Codes to media.

        Args:
            modality: name of a row of the modality table.
            codes: a list of `[K, T]` (or `[T]`) integer codes, as the language model writes them.
            voice: sound of the voice to speak in (path, `(array, sampling_rate)`, block); its first 3 s are used. Only
                for sound with a decoder.
            steps: of the decoder. None: 1 for sound (`add_acoustic_codes`), 20 for pictures (`paint`).
            generator: of the decoder's draws.
            guidance, negative_codes: of pictures with a decoder, see `paint`. None: 10, and nothing to avoid.

        Returns:
            An ImagePart, SpeechPart, MusicPart or AudioPart each.
        """
        spec = find_modality(self.specs, modality)
        if voice is not None and not spec.has_voice:
            raise ValueError(f"{modality} has no decoder that takes a voice. Leave voice out.")
        paints = spec.decoder is not None and spec.sampling_rate is None
        if not paints and (guidance is not None or negative_codes is not None):
            raise ValueError(f"{modality} has no decoder that takes guidance or negative codes. Leave them out.")
        if steps is not None and spec.decoder is None:
            raise ValueError(f"{modality} has no decoder that takes steps. Leave them out.")
        if steps is not None and not isinstance(steps, Integral):
            raise ValueError(f"Got steps={steps!r}, need a whole number.")
        codes = [_checked(spec, item) for item in codes]
        if not codes:
            return []
        codec = self.codec(modality)
        if paints:
            negative = None if negative_codes is None else _checked(spec, negative_codes)
            values = paint(self.shelf.get(spec.decoder), codec, codes, negative, steps, guidance, generator)
            return [ImagePart(array_to_image(v), c, modality) for v, c in zip(values, codes, strict=True)]
        full = codes
        if spec.decoder is not None:
            sound = None if voice is None else _load(spec, voice, None, False, MAX_SECONDS)
            steps = 1 if steps is None else int(steps)
            full = add_acoustic_codes(self.shelf.get(spec.decoder), codec, codes, sound, steps, generator)
        values = decode(codec, full)
        if is_audio(codec):
            make = AUDIO_PARTS.get(modality)
            if make is None:
                return [AudioPart(v, spec.sampling_rate, c, modality) for v, c in zip(values, codes, strict=True)]
            return [make(v, spec.sampling_rate, c) for v, c in zip(values, codes, strict=True)]
        if values[0].ndim == 1:
            raise ValueError(
                f"The {modality} codec gives embeddings, not pictures. Name an unCLIP pipeline (subfolder or "
                "hub id) as its decoder in the modality table."
            )
        return [ImagePart(array_to_image(v), c, modality) for v, c in zip(values, codes, strict=True)]

    # Into the model

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]] | list[list[dict[str, Any]]],
        chat_template: None = None,
        tools: None = None,
        documents: None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = None,
        return_dict: bool = False,
        start_modality: str | None = None,
        return_labels: bool = False,
        padding: bool | str = True,
        truncation: bool | str = False,
        max_length: int | None = None,
        allow_urls: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Renders one conversation, or a batch of them, in the chat format of AnyGPT.

        Blocks of a message's content: `{"type": "text", "text"}`, `{"type": "transcript", "text"}` (what a spoken
        instruction said), and for every modality `{"type": name, ...}` with one of "path", "url" (only with
        `allow_urls`, but for `data:` ones), "audio" or "image" (array, PIL image, path), "bytes", "base64", "codes"
        `[K, T]`; audio arrays also need "sampling_rate" (Hz). "audio" as a type means speech. "image_url" and
        "input_audio" blocks are read as in OpenAI's messages.

        Args:
            conversation: messages, or a list of conversations.
            chat_template, tools, documents: as transformers passes them; the model knows one format and none of these.
            add_generation_prompt: end with `[MMGPT]:`.
            continue_final_message: leave the last assistant message open.
            return_assistant_tokens_mask: add "assistant_masks", 1 on what labels mark; needs `return_dict`.
            tokenize: ids instead of the rendered string. (Tokenising the string yourself lets text in it spell
                control tokens.)
            return_tensors: "pt" or "np".
            return_dict: `{"input_ids", "attention_mask"}` instead of the ids alone: a batch, also of a single
                conversation, as transformers' other processors return it.
            start_modality: end with the start token of this modality: the model has to write it.
            return_labels: add "labels", -100 off the assistant's turns; needs `return_dict`.
            padding, truncation, max_length: see `Batching`.
            allow_urls: fetch blocks that name a URL.
            processor_kwargs: more of `Batching`'s, over those above, and "sampling_rate" (Hz) of audio arrays that
                come without one.

        Raises:
            ValueError: media, messages or options that can't be used.
        """
        if tools or documents or chat_template not in (None, self.chat_template):
            raise ValueError("AnyGPT knows no tools, documents or other chat templates. Leave them out.")
        if tokenize and (return_labels or return_assistant_tokens_mask) and not return_dict:
            raise ValueError("return_labels and return_assistant_tokens_mask need return_dict=True.")
        batching = {"padding": padding, "truncation": truncation, "max_length": max_length}
        batching |= {"return_tensors": return_tensors} | (processor_kwargs or {})
        sampling_rate = batching.pop("sampling_rate", None)
        batching.pop("add_special_tokens", None)  # TRL says it; the format knows where BOS stands
        batching = Batching.from_options(batching)
        if isinstance(conversation, str) or not isinstance(conversation, Sequence):
            raise ValueError(f"Got a conversation of type {type(conversation).__name__}, need a list of messages.")
        batched = bool(conversation) and not isinstance(conversation[0], dict)
        conversations = conversation if batched else [conversation]
        conversations = self._encode_blocks(conversations, sampling_rate, allow_urls)
        arguments = (self.tokenizer, self.specs, add_generation_prompt, self.system_prompt)
        options = {"continue_final_message": continue_final_message, "start_modality": start_modality}
        options["separator"] = self.turn_separator
        if not tokenize:
            strings = [render_text(messages, *arguments, **options) for messages in conversations]
            return strings if batched else strings[0]
        rendered = [render(messages, *arguments, **options) for messages in conversations]
        features = {"input_ids": [ids for ids, _ in rendered]}
        if return_labels:
            features["labels"] = [labels for _, labels in rendered]
        if return_assistant_tokens_mask:
            features["assistant_masks"] = [[int(label != IGNORED) for label in labels] for _, labels in rendered]
        batch = batching.collate(features, self.tokenizer)
        if return_dict:
            return batch
        return batch["input_ids"] if batched or batching.return_tensors else batch["input_ids"][0]

    def __call__(
        self,
        text: str | list[str] | None = None,
        images: Any = None,
        speech: Any = None,
        music: Any = None,
        audio: Any = None,
        videos: Any = None,
        media: dict[str, Any] | None = None,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        padding: bool | str = True,
        truncation: bool | str = False,
        max_length: int | None = None,
        padding_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        allow_control_tokens: bool = False,
        allow_urls: bool = False,
    ) -> BatchFeature:
        """Plain text with media spliced in, without the chat format. For conversations: `apply_chat_template`.

        Args:
            text: one text or a batch. `<image>`, `<speech>`, `<music>` (`<name>` of any modality) mark where the media
                go, in order; media without a marker in their text go before it. Markers of a modality for which no
                media are given are ordinary text.
            images, speech, music: one item, a list for the whole batch, or a list of lists, one for each text.
            audio: another name of `speech` (transformers' pipelines use it).
            videos: not supported.
            media: items of any modality by name, for rows of the table that have no argument here.
            sampling_rate: Hz of audio arrays that come without one.
            return_tensors: "pt" or "np".
            padding, truncation, max_length, padding_side, pad_to_multiple_of: see `Batching`.
            allow_control_tokens: let `text` spell control and code tokens, for strings from
                `apply_chat_template(tokenize=False)`. Never for text that a user typed.
            allow_urls: fetch items that are URLs.

        Returns:
            "input_ids" and "attention_mask" of a batch, also of a single text.
        """
        batching = Batching(padding, truncation, max_length, padding_side, pad_to_multiple_of, return_tensors)
        if videos is not None and len(videos):
            raise ValueError("Got videos, which AnyGPT does not know. Pass text, images, speech or music.")
        given = {"image": images, "speech": speech if speech is not None else audio, "music": music, **(media or {})}
        given = {name: items for name, items in given.items() if items is not None}
        if text is None and not given:
            raise ValueError("Got neither text nor media, need at least one of them.")
        if speech is not None and audio is not None:
            raise ValueError("Got speech and audio, which are two names of the same. Pass one of them.")
        texts = list(text) if isinstance(text, (list, tuple)) else ["" if text is None else text]
        if not texts or not all(isinstance(string, str) for string in texts):
            raise ValueError(f"Got text={text!r}, need a string or a list of at least one.")
        pieces: list[list[Piece]] = [[(string, False)] for string in texts]
        for name, items in given.items():
            spec = find_modality(self.specs, name)
            marker = f"<{name}>"
            groups = share_out(items, [string.count(marker) for string in texts], name)
            codes = self.encode_media(name, [item for group in groups for item in group], sampling_rate, allow_urls)
            ids = iter([[spec.start_token_id, *codes_to_ids(spec, c), spec.end_token_id] for c in codes])
            pieces = [
                splice(row, marker, [next(ids) for _ in group]) for row, group in zip(pieces, groups, strict=True)
            ]
        if allow_control_tokens:
            strings = [
                "".join(p if isinstance(p, str) else "".join(self.tokenizer.convert_ids_to_tokens(p)) for p, _ in row)
                for row in pieces
            ]
            rows = self.tokenizer(strings)["input_ids"]
        else:
            rows = [encode_pieces(row, text_only(self.tokenizer))[0] for row in pieces]
        return batching.collate({"input_ids": rows}, self.tokenizer)

    def _encode_blocks(
        self, conversations: Sequence[Any], sampling_rate: int | None, allow_urls: bool
    ) -> list[list[dict[str, Any]]]:
        """Copies of the conversations in which every media block holds codes; one codec batch for each modality."""
        names = {spec.name for spec in self.specs}
        waiting: dict[str, list[dict[str, Any]]] = {}
        copies = []
        for conversation in conversations:
            messages = []
            for message in conversation:
                message = dict(checked_dict(message, "message", '{"role": "user", "content": ...}'))
                if isinstance(message.get("content"), (list, tuple)):
                    message["content"] = [own_block(block, names) for block in message["content"]]
                    for block in message["content"]:
                        if block.get("type") in names and block.get("codes") is None:
                            waiting.setdefault(block["type"], []).append(block)
                messages.append(message)
            copies.append(messages)
        for name, blocks in waiting.items():
            encoded = self.encode_media(name, blocks, sampling_rate, allow_urls)
            for block, codes in zip(blocks, encoded, strict=True):
                block["codes"] = codes
        return copies

    # Out of the model

    def parse_output(
        self,
        ids: Any,
        voice: Any = None,
        steps: int | None = None,
        generator: torch.Generator | None = None,
        joined: Sequence[str] = (),
    ) -> list[Part]:
        """The ids of one reply (without its prompt) to typed parts, in order.

        Args:
            ids: `[L]` tensor, array or list.
            voice, steps: of speech; see `decode_codes`. Pictures are painted with the settings of their decoder.
            generator: of the draws of all decoders.
            joined: modalities whose items in this reply are pieces of one, such as speech that comes word by word
                between the words it says: decoded together, after all the text.

        Returns:
            TextPart, TranscriptPart, ImagePart, SpeechPart, MusicPart, AudioPart; an item that was cut off before it
            could be decoded is an UnfinishedPart.
        """
        ids = _as_list(ids)
        if any(isinstance(row, list) for row in ids):
            raise ValueError(f"Got a batch of {len(ids)} replies, need the ids of one. Parse them one by one.")
        segments = parse(ids, self.tokenizer, self.specs)
        for name in joined:
            segments = join_items(segments, find_modality(self.specs, name).name)
        parts: list[Any] = [None] * len(segments)
        for spec in self.specs:
            whole = [i for i, s in enumerate(segments) if s.modality == spec.name and s.problem is None]
            if whole:
                codes = [segments[i].codes for i in whole]
                own_voice, own_steps = (voice, steps) if spec.has_voice else (None, None)
                made = self.decode_codes(spec.name, codes, own_voice, own_steps, generator)
                for i, part in zip(whole, made, strict=True):
                    parts[i] = part
        for i, segment in enumerate(segments):
            if segment.text is not None:
                parts[i] = TextPart(segment.text) if segment.modality == "text" else TranscriptPart(segment.text)
            elif segment.problem is not None:
                parts[i] = UnfinishedPart(segment.modality, segment.codes, segment.problem)
        return parts

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        clean_up_tokenization_spaces: bool = False,
    ) -> list[Any]:
        """What transformers' any-to-any pipeline shows of generated sequences (prompts included).

        Args:
            generated_outputs: ids `[B, L]` or `[L]`.
            skip_special_tokens: leave out the tokenizer's special tokens.
            generation_mode: "text" (or None), "image", "audio" (the first item of any audio modality), or the name of
                a modality.
            clean_up_tokenization_spaces: as in the tokenizer's `decode`.

        Returns:
            A list with, for each sequence, its text (media and transcripts left out), or of the last reply the first
            picture (PIL) or sound (float32 `[T]`); None where the reply has none.
        """
        rows = _as_list(generated_outputs)
        rows = rows if rows and isinstance(rows[0], list) else [rows]
        if generation_mode in (None, "text"):
            texts = [text_ids(row, self.tokenizer, self.specs) for row in rows]
            return [
                self.tokenizer.decode(
                    text,
                    skip_special_tokens=skip_special_tokens,
                    clean_up_tokenization_spaces=clean_up_tokenization_spaces,
                )
                for text in texts
            ]
        names = [spec.name for spec in self.specs if generation_mode == spec.name]
        if generation_mode == "audio":
            names = names or [spec.name for spec in self.specs if spec.sampling_rate is not None]
        if not names:
            known = ", ".join(["text", "audio", *(spec.name for spec in self.specs)])
            raise ValueError(f"Got generation_mode={generation_mode!r}. Known: {known}.")
        assistant = self.tokenizer.convert_tokens_to_ids(ASSISTANT)
        results = []
        for row in rows:
            reply = row[len(row) - row[::-1].index(assistant) :] if assistant in row else row
            parts = [part for part in self.parse_output(reply) if part.modality in names]
            whole = [part for part in parts if not isinstance(part, UnfinishedPart)]
            first = whole[0] if whole else None
            results.append(first.waveform if isinstance(first, AudioPart) else first and first.image)
        return results

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, clean_up_tokenization_spaces: bool = False
    ) -> list[str]:
        """The text of generated sequences, as transformers' image-text-to-text pipeline shows it: without media and
        what was heard."""
        return self.post_process_multimodal_output(
            generated_outputs, skip_special_tokens, "text", clean_up_tokenization_spaces
        )


FROM_PRETRAINED_OPTIONS = ("subfolder", "trust_remote_code", "cache_dir", "local_files_only", "token", "revision")


def _as_list(ids: Any) -> list:
    """Ids, or rows of ids, as lists of ints."""
    return ids.tolist() if hasattr(ids, "tolist") else [i.tolist() if hasattr(i, "tolist") else i for i in ids]


def _given_codes(spec: Modality, item: Any) -> np.ndarray | None:
    """The codes of a block that brings them."""
    if isinstance(item, dict) and item.get("codes") is not None:
        codes = np.asarray(item["codes"])
        return codes[None] if codes.ndim == 1 else codes
    return None


def _checked(spec: Modality, item: Any) -> np.ndarray:
    """Codes as `[K, T]` int64; a ValueError for another shape, type or range, and for none at all."""
    codes = np.asarray(item)
    codes = codes[0] if codes.ndim == 3 and len(codes) == 1 else codes  # a batch of one
    codes = codes[None] if codes.ndim == 1 else codes
    codes_to_ids(spec, codes)
    if not codes.size:
        raise ValueError(f"Got {spec.name} codes without a frame, need one or more.")
    return codes.astype(np.int64)


def _load(spec: Modality, item: Any, sampling_rate: int | None, allow_urls: bool, max_seconds: float) -> np.ndarray:
    """One item as the codec takes it: `[samples]` or `[3, S, S]`."""
    if isinstance(item, dict):
        sampling_rate = item.get("sampling_rate", sampling_rate)
        found = find_source(item, spec.name)
        if item.get("url") is found and not allow_urls and not str(found).startswith(INLINE):
            raise ValueError(f"{found} is not fetched unless asked. Pass allow_urls=True, or download it.")
        item = found
    if isinstance(item, dict):  # datasets' {"array", "sampling_rate"} or {"bytes", "path"} inside a block
        return _load(spec, item, sampling_rate, allow_urls, max_seconds)
    if spec.sampling_rate is not None:
        if isinstance(item, tuple):
            item, sampling_rate = item
        waveform = load_audio(item, spec.sampling_rate, sampling_rate, max_seconds, allow_urls)
        seconds, frame = len(waveform) / spec.sampling_rate, 1 / spec.frame_rate
        if seconds < frame:
            place = f" in {Path(item).name}" if isinstance(item, (str, Path)) else ""
            raise ValueError(
                f"Got {seconds * 1000:.1f} ms of {spec.name}{place}, need a frame of {frame * 1000:g} ms or more. "
                "Record it again: the file may be cut off."
            )
        return waveform
    return image_to_array(load_image(item, allow_urls), spec.image_size)


__all__ = ["AnyGPTProcessor"]
