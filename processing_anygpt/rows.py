"""Training rows on disk: what train/prepare_data.py writes and the trainers read. Parquet shards and a manifest.

A folder of rows:

    part-000000.parquet ...   one shard for every unit of source rows; its name says which unit
    manifest.json             settings, fingerprints of tokenizer and codecs, totals, the list of shards
    rejects.jsonl             {"source", "task" or null, "reason"} of everything that did not become a row

Columns of a shard:

    input_ids        list<int32>    ids of one conversation, its `<eos>` included, or of a document; without padding
    labels           list<int32>    of equal length: the id where it is learned, -100 elsewhere; not shifted
    length           int32          number of ids
    modality_tokens  struct         {"text", and every modality by name}: int32, ids of each; an item counts with its
                                    start and end token, all other ids are "text"; the sum is `length`
    task             string         "speech->text", "text->image", ..., "messages" or "document"
    source           string         which source row it is, and where in it a piece of a document begins
                                    ("a.jsonl:3+511"); with `task` unique in the folder, for which it begins with
                                    the number of the input ("2:a.jsonl:3") where two are called the same

A shard appears whole or not at all (temporary name, then rename), and the reasons why source rows of its unit were
refused travel inside it, in the metadata of its schema. So a folder is resumed by making the shards that are missing.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .conversation import IGNORED
from .files import write_text, write_whole
from .vocabulary import code_ids

VERSION = 1  # of this layout
SUMMARY_KEY, REJECTS_KEY = b"anygpt_summary", b"anygpt_rejects"


def schema(modalities: Sequence[str]) -> pa.Schema:
    """The columns of a shard; `modalities` are the names of the modality table, in its order."""
    ids = pa.list_(pa.field("element", pa.int32(), nullable=False))
    counts = pa.struct([pa.field(name, pa.int32()) for name in ("text", *modalities)])
    fields = {"input_ids": ids, "labels": ids, "length": pa.int32(), "modality_tokens": counts}
    return pa.schema([*fields.items(), ("task", pa.string()), ("source", pa.string())])


def make_row(input_ids: list[int], labels: list[int], task: str, source: str, modalities: Sequence[Any]) -> dict:
    """One row as `schema` has it. `modalities`: rows of the modality table with their ids."""
    if len(input_ids) != len(labels):
        raise ValueError(f"Got {len(input_ids)} ids and {len(labels)} labels, need as many of each.")
    counts = {"text": len(input_ids)}
    for spec in modalities:
        own = code_ids(spec)
        counts[spec.name] = sum(i in own or i in (spec.start_token_id, spec.end_token_id) for i in input_ids)
        counts["text"] -= counts[spec.name]
    row = {"input_ids": input_ids, "labels": labels, "length": len(input_ids), "modality_tokens": counts}
    return row | {"task": task, "source": source}


def shard_name(unit: int) -> str:
    return f"part-{unit:06d}.parquet"


def write_shard(path: Path, rows: list[dict], rejects: list[dict], modalities: Sequence[str]) -> None:
    """Writes one shard, whole or not at all. A unit without a good row still gets one, with its rejects."""
    table = pa.Table.from_pylist(rows, schema=schema(modalities))
    notes = {SUMMARY_KEY: summarise(rows, rejects, modalities), REJECTS_KEY: rejects}
    table = table.replace_schema_metadata({key: json.dumps(value).encode() for key, value in notes.items()})
    write_whole(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def summarise(rows: list[dict], rejects: list[dict], modalities: Sequence[str]) -> dict:
    """What the manifest says about one shard; `read_manifest` has the keys."""
    tokens = {name: sum(row["modality_tokens"][name] for row in rows) for name in ("text", *modalities)}
    return {
        "rows": len(rows),
        "rejected": len(rejects),
        "tokens": sum(row["length"] for row in rows),
        "learned_tokens": sum(row["length"] - row["labels"].count(IGNORED) for row in rows),
        "tasks": dict(sorted(Counter(row["task"] for row in rows).items())),
        "modality_tokens": tokens,
    }


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """pyarrow's errors about a damaged parquet file become a ValueError that says which file it is."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        problem = f"{path} is no whole parquet file ({error})"
        raise ValueError(f"{problem}. Make it again; delete it first if it is a shard of rows.") from error


def read_schema(path: Path) -> pa.Schema:
    """The columns of a parquet file, without reading its rows. ValueError if it is none."""
    with naming(path):
        return pq.read_schema(path)


def shard_notes(path: Path) -> tuple[dict, list[dict]]:
    """The summary and the rejects of a shard, without reading its rows. ValueError if it is none."""
    metadata = read_schema(path).metadata or {}
    if not {SUMMARY_KEY, REJECTS_KEY} <= metadata.keys():
        raise ValueError(f"{path} is no shard of rows. Delete it, and run train/prepare_data.py again.")
    return {"file": path.name, **json.loads(metadata[SUMMARY_KEY])}, json.loads(metadata[REJECTS_KEY])


def begin(folder: Path, facts: dict) -> list[int]:
    """Opens a new folder of rows, or one that a run with the same facts has left.

    Args:
        facts: "settings", "modalities", fingerprints, "units" (how many): what has to be equal for the rows to be.

    Returns:
        The units whose shards are missing.

    Raises:
        ValueError: the folder holds other things, or rows made with other settings, data or codecs.
    """
    path = folder / "manifest.json"
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        before = _read_json(path)
        for what in facts:
            _check_equal(folder, what, before.get(what), facts[what])
    elif any(not file.name.startswith(".part-") for file in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and has no manifest.json. Give --out a new or an empty folder.")
    for leftover in folder.glob(".*.tmp"):  # of a run that was killed
        leftover.unlink(missing_ok=True)
    todo = [unit for unit in range(facts["units"]) if not (folder / shard_name(unit)).is_file()]
    if todo or not path.is_file():
        _write_json(path, {"version": VERSION, "complete": False, **facts})
    return todo


def finish(folder: Path, facts: dict) -> dict:
    """Writes rejects.jsonl and the final manifest of a folder that has all its shards; returns the manifest."""
    notes = [shard_notes(folder / shard_name(unit)) for unit in range(facts["units"])]
    lines = [json.dumps(reject) + "\n" for _, rejects in notes for reject in rejects]
    write_text(folder / "rejects.jsonl", "".join(lines))
    shards = [summary for summary, _ in notes]
    totals: dict[str, Any] = {
        key: sum(s[key] for s in shards) for key in ("rows", "rejected", "tokens", "learned_tokens")
    }
    for key in ("tasks", "modality_tokens"):
        totals[key] = dict(sum((Counter(shard[key]) for shard in shards), Counter()))
    manifest = {"version": VERSION, "complete": True, **facts, **totals, "shards": shards}
    _write_json(folder / "manifest.json", manifest)
    return manifest


def _check_equal(folder: Path, what: str, before: Any, now: Any) -> None:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            _check_equal(folder, f"{what}.{key}", before.get(key), now.get(key))
    elif before != now:
        other = what.removeprefix("settings.")
        if other == "input":
            other += ": files came, went or changed"
        raise ValueError(
            f"{folder} was begun with another {other} ({before!r:.60}, now {now!r:.60}). "
            "Go on with the same, or give another --out."
        )


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Make the rows again.") from None
    if not isinstance(value, dict) or value.get("version") != VERSION:
        raise ValueError(f"{path} is not of layout {VERSION}. Make the rows again with train/prepare_data.py.")
    return value


def _write_json(path: Path, value: dict) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write_text(path, text)


def read_manifest(folder: str | os.PathLike) -> dict:
    """The manifest of a finished folder of rows.

    Keys: "version", "complete", "settings" (dict), "tokenizer" (fingerprint), "codecs" {name: fingerprint},
    "modalities" (names), "input" (fingerprint of the source), "units", "shards"; in each shard and over all of them
    "rows", "rejected", "tokens", "learned_tokens", "tasks" {task: rows}, "modality_tokens" {name: tokens}.

    Raises:
        ValueError: no manifest, a damaged one or one of another layout, a run that was stopped, a shard that is gone.
    """
    folder = Path(folder)
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no manifest.json: it is no folder of rows. Make one with train/prepare_data.py."
        )
    manifest = _read_json(path)
    if manifest.get("complete") is False:
        raise ValueError(f"{folder} is not finished. Run the same train/prepare_data.py command again: it goes on.")
    lacking = [key for key in ("complete", "modalities", "tasks", "shards") if key not in manifest]
    if lacking:
        raise ValueError(f"{path} is damaged: it has no {lacking[0]!r}. Make the rows again.")
    missing = [shard["file"] for shard in manifest["shards"] if not (folder / shard["file"]).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {missing[0]} ({len(missing)} shards). Run train/prepare_data.py again.")
    return manifest


def shard_paths(folder: str | os.PathLike) -> list[Path]:
    """The shards of a finished folder, in order (for `datasets.load_dataset("parquet", data_files=...)`)."""
    return [Path(folder) / shard["file"] for shard in read_manifest(folder)["shards"] if shard["rows"]]


def read_table(folder: str | os.PathLike, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a finished folder in order, in memory; `datasets.Dataset(table)` wraps it.

    Raises:
        ValueError: see `read_manifest`; a column that there is not.
    """
    manifest = read_manifest(folder)
    wanted = schema(manifest["modalities"])
    unknown = sorted(set(columns or ()) - set(wanted.names))
    if unknown:
        raise ValueError(f"Rows have no column {unknown[0]!r}. They have {', '.join(wanted.names)}.")
    if columns is not None:
        wanted = pa.schema([wanted.field(name) for name in columns])
    tables = []
    for path in shard_paths(folder):
        with naming(path):
            tables.append(pq.read_table(path, columns=wanted.names).replace_schema_metadata(None).cast(wanted))
    return pa.concat_tables(tables) if tables else wanted.empty_table()


def vocabulary_fingerprint(tokenizer: Any) -> str:
    """The same for tokenizers that give every token the same id."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def check_vocabulary(manifest: dict, tokenizer: Any) -> None:
    """ValueError if rows were made with another vocabulary than `tokenizer`'s: their ids would mean other things."""
    if manifest.get("tokenizer") != vocabulary_fingerprint(tokenizer):
        raise ValueError(
            "These rows were made with another vocabulary than this checkpoint's. Train the checkpoint given to "
            "train/prepare_data.py --model, or make the rows again with this one."
        )


def fingerprint(files: Iterable[Path]) -> str:
    """SHA-256 over names and contents, in the order of the names."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0")
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
