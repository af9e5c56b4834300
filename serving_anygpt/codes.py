"""`anygpt encode` and `anygpt decode`: media to codes and back, one JSON object a line, without the language model."""

import argparse
import json
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from tqdm import tqdm

from . import media
from .engine import load_processor


def encode(arguments: argparse.Namespace, blocks: list[dict]) -> None:
    """Prints `{"file", "modality", "codes" [K][T]}` for each file, in order."""
    processor = load_processor(arguments.model)
    for block in tqdm(blocks, desc="encoding", unit=" files", delay=1.0, leave=False, disable=arguments.json):
        (codes,) = processor.encode_media(block["type"], [block])
        print(json.dumps({"file": block["path"], "modality": block["type"], "codes": codes.tolist()}), flush=True)


def decode(arguments: argparse.Namespace, config: dict, source: TextIO) -> None:
    """Writes a file for each line of `source`; prints their names.

    Everything is read and checked before the first file is written. One line goes to `--out`; several go into it as a
    folder, named after the files they came from and their line.
    """
    items = [read_line(line, number, config) for number, line in enumerate(source, 1) if line.strip()]
    if not items:
        raise ValueError("Got no codes on standard input. Use it as: anygpt encode x.wav | anygpt decode --out y.wav")
    rows = [media.check_modality(name, config, text=False) for name, _, _ in items]
    if len(items) == 1:
        paths = [media.check_writable(arguments.out or f"decoded{media.default_suffix(rows[0])}", rows[0])]
    else:
        folder = media.writable_folder(arguments.out or "decoded", create=True)
        paths = [
            folder / f"{number}_{Path(file).stem[:80]}{media.default_suffix(row)}"
            for number, ((_, _, file), row) in enumerate(zip(items, rows, strict=True), 1)
        ]
    torch.manual_seed(arguments.seed)
    processor = load_processor(arguments.model)
    progress = tqdm(paths, desc="decoding", unit=" files", delay=1.0, leave=False, disable=arguments.json)
    for path, (name, codes, _), row in zip(progress, items, rows, strict=True):
        speaks = row.get("decoder") and row.get("sampling_rate")
        (part,) = processor.decode_codes(name, [codes], voice=arguments.voice if speaks else None)
        part.save(path)
        print(json.dumps({"file": str(path), "modality": name}) if arguments.json else path, flush=True)


def read_line(line: str, number: int, config: dict) -> tuple[str, np.ndarray, str]:
    """One line of standard input as (modality, codes [K, T] int64, the file it came from)."""
    where = f"line {number} of standard input"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"{where} is not JSON. It should be what `anygpt encode` prints.") from None
    if not isinstance(record, dict) or "codes" not in record or not isinstance(record.get("modality"), str):
        raise ValueError(f'{where} needs "modality" and "codes", as `anygpt encode` prints them.')
    row = media.check_modality(record["modality"], config, text=False)
    try:
        codes = np.array(record["codes"])
    except ValueError:
        raise ValueError(f"{where}: the codebooks have codes of different number.") from None
    books, size = row["num_codebooks"], row["codebook_size"]
    if codes.ndim != 2 or codes.shape[0] != books or codes.shape[1] == 0 or codes.dtype.kind != "i":
        raise ValueError(f"{where}: {row['name']} codes are {books} lists of integers of one length, at least 1.")
    if codes.min() < 0 or codes.max() >= size:
        raise ValueError(f"{where}: {row['name']} codes lie in 0..{size - 1}, got {codes.min()}..{codes.max()}.")
    if row.get("codes_per_item") and codes.size != row["codes_per_item"]:
        raise ValueError(f"{where}: {row['name']} takes {row['codes_per_item']} codes, got {codes.size}.")
    return row["name"], codes, str(record.get("file", "codes"))
