"""Texts with media to rows of ids, rows of ids to a batch, with the options that transformers' tokenizers have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from transformers import BatchFeature
from transformers.utils import PaddingStrategy

from .conversation import IGNORED, Piece

LONGEST_STATED = 1_000_000  # tokenizers that know no limit say 1e30


@dataclass(frozen=True)
class Batching:
    """How rows of ids become a batch; as in transformers' tokenizers.

    Args:
        padding: True or "longest", "max_length", False or "do_not_pad".
        truncation: cut rows to `max_length`, at the tokenizer's truncation side: perhaps in the middle of an item.
        max_length: ids of a row; None: the tokenizer's `model_max_length`.
        padding_side: "left" or "right"; None: the tokenizer's.
        pad_to_multiple_of: pad to a multiple of this.
        return_tensors: "pt" or "np"; None: lists.

    Raises:
        ValueError: other values.
    """

    padding: bool | str = True
    truncation: bool | str = False
    max_length: int | None = None
    padding_side: str | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str | None = None

    def __post_init__(self):
        if not isinstance(self.padding, bool):
            PaddingStrategy(self.padding)  # a ValueError that names the known ones
        if self.padding_side not in (None, "left", "right"):
            raise ValueError(f"Got padding_side={self.padding_side!r}, allowed: 'left', 'right'.")
        for name in ("max_length", "pad_to_multiple_of"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Got {name}={value}, allowed: 1 or more.")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Batching:
        """Raises ValueError for keys that are none of these."""
        known = [field.name for field in fields(cls)]
        for key in options:
            if key not in known:
                raise ValueError(f"Unknown processor option {key!r}. Known: {', '.join(known)}, sampling_rate.")
        return cls(**options)

    def longest(self, tokenizer: Any) -> int:
        """`max_length`, or the tokenizer's."""
        if self.max_length is not None:
            return self.max_length
        if tokenizer.model_max_length > LONGEST_STATED:
            raise ValueError("The tokenizer knows no longest row. Pass max_length.")
        return tokenizer.model_max_length

    def collate(self, features: dict[str, list[list[int]]], tokenizer: Any) -> BatchFeature:
        """Rows of "input_ids", and of others as long, with "attention_mask"."""
        if self.truncation and self.truncation != "do_not_truncate":
            length = self.longest(tokenizer)
            part = slice(-length, None) if tokenizer.truncation_side == "left" else slice(length)
            features = {key: [row[part] for row in rows] for key, rows in features.items()}
        lengths = [len(row) for row in features["input_ids"]]
        features["attention_mask"] = [[1] * length for length in lengths]
        strategy = {True: "longest", False: "do_not_pad"}.get(self.padding, self.padding)
        width = 0
        if strategy != "do_not_pad":
            width = max(lengths) if strategy == "longest" else self.longest(tokenizer)
            width += -width % (self.pad_to_multiple_of or 1)
        if width > min(lengths):
            if tokenizer.pad_token_id is None:
                raise ValueError("The tokenizer has no pad token. Set tokenizer.pad_token to pad a batch.")
            side = self.padding_side or tokenizer.padding_side
            fill = {"input_ids": tokenizer.pad_token_id, "labels": IGNORED}  # the others 0
            features = {key: [pad(row, width, fill.get(key, 0), side) for row in v] for key, v in features.items()}
        widths = sorted({len(row) for row in features["input_ids"]})
        if self.return_tensors and len(widths) > 1:
            raise ValueError(
                f"Got rows of {widths[0]} to {widths[-1]} ids for one tensor. Pad them (padding=True), or cut them "
                "(truncation=True, max_length=...)."
            )
        return BatchFeature(features, tensor_type=self.return_tensors)


def pad(row: list[int], width: int, value: int, side: str) -> list[int]:
    more = [value] * (width - len(row))
    return more + row if side == "left" else row + more


def share_out(items: Any, markers: list[int], name: str) -> list[list[Any]]:
    """Media of a batch to its texts: by nesting if they come nested, else by markers, else one each.

    `items` may be a list, an array or tensor of several ([N, C, H, W]), or a tuple that is no (samples, rate).
    """
    several = isinstance(items, list) or getattr(items, "ndim", 0) == 4
    several |= isinstance(items, tuple) and not (len(items) == 2 and isinstance(items[1], (int, float, np.number)))
    items = list(items) if several else [items]
    if items and all(isinstance(item, list) for item in items) and len(items) == len(markers):
        groups = items
    elif len(items) == sum(markers):
        rest = iter(items)
        groups = [[next(rest) for _ in range(count)] for count in markers]
    elif sum(markers) == 0 and (len(items) == len(markers) or len(markers) == 1):
        groups = [[item] for item in items] if len(items) == len(markers) else [items]
    else:
        raise ValueError(
            f"Got {len(items)} {name} items for {sum(markers)} <{name}> markers in {len(markers)} texts. Give one "
            "item for each marker, or one for each text without markers."
        )
    for group, count in zip(groups, markers, strict=True):
        if count not in (0, len(group)):
            raise ValueError(
                f"Got {len(group)} {name} items for a text with {count} <{name}> markers. Make them equal."
            )
    return groups


def splice(pieces: list[Piece], marker: str, items: list[list[int]]) -> list[Piece]:
    """Puts the ids of `items` where the markers are in the text, or in front of it."""
    if not items:
        return pieces
    if not any(marker in piece for piece, _ in pieces if isinstance(piece, str)):
        rest = [piece for piece in pieces if piece[0]]
        spaced = [piece for ids in items for piece in ((ids, False), (" ", False))]
        return spaced + rest if rest else spaced[:-1]
    result: list[Piece] = []
    rest = iter(items)
    for piece, learned in pieces:
        if isinstance(piece, str):
            for index, text in enumerate(piece.split(marker)):
                if index:
                    result.append((next(rest), False))
                result.append((text, learned))
        else:
            result.append((piece, learned))
    return result
