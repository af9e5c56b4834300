"""Rows of token ids as the trainers read them: memory-mapped columns of parquet files, and packs of rows."""

from pathlib import Path

import numpy as np
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from processing_anygpt.rows import check_vocabulary, read_manifest, read_schema, shard_paths


def load_columns(files: list[Path], columns: list[str], cache: str | None) -> Dataset:
    """Columns of parquet files, memory-mapped from copies in `cache`. OSError if those can't be made."""
    try:
        return load_dataset(
            "parquet", data_files=[str(f) for f in files], columns=columns, split="train", cache_dir=cache
        )
    except DatasetGenerationError as error:
        raise OSError(
            f"{files[0].parent} can't be copied into data_cache ({error.__cause__ or error}). Is the disk full? Name "
            "another data_cache; or make the rows again if they are damaged."
        ) from error


def is_task_list(tasks) -> bool:
    return isinstance(tasks, list) and bool(tasks) and all(isinstance(task, str) for task in tasks)


def open_rows(name: str, source: dict, tokenizer, cache: str | None) -> tuple[Dataset, np.ndarray]:
    """The rows of one source, memory-mapped, and their lengths [rows].

    Raises:
        ValueError: the folder is not finished, made with another vocabulary, lacks a column or a task.
    """
    manifest = read_manifest(source["rows"])
    check_vocabulary(manifest, tokenizer)
    shards = shard_paths(source["rows"])
    if not shards:
        raise ValueError(f"Source {name!r}: {source['rows']} holds no rows.")
    columns = ["input_ids", "labels", "length", "task"]
    for shard in shards:
        missing = [column for column in columns if column not in read_schema(shard).names]
        if missing:
            raise ValueError(f"Source {name!r}: {shard} has no column {missing[0]!r}. Make it with prepare_data.py.")
    tasks, known = source.get("tasks"), ", ".join(manifest["tasks"])
    if "tasks" in source:
        if not is_task_list(tasks):
            raise ValueError(f"Source {name!r}: got tasks {tasks!r}, need a list of one or more of {known}.")
        unknown = sorted(set(tasks) - set(manifest["tasks"]))
        if unknown:
            raise ValueError(f"Source {name!r} has no task {unknown[0]!r}. It has {known}.")
    rows = load_columns(shards, columns, cache)
    if "tasks" in source:
        rows = rows.select(np.flatnonzero(np.isin(np.array(rows["task"][:]), tasks)))
    lengths = rows.with_format("numpy")["length"][:]
    return rows.select_columns(["input_ids", "labels"]), lengths


class PackReader:
    """Turns numbers of packs into what TRL's collator takes: ids, labels, and the lengths of the rows in a pack; and
    with `kept`, [rows], how much each id counts if its row is such a one, else 0 (keeping.py)."""

    def __init__(self, rows: Dataset, packs, learn: str, kept: np.ndarray | None = None):
        self.rows, self.packs, self.learn, self.kept = rows.with_format("arrow"), packs, learn, kept

    def __call__(self, batch: dict) -> dict[str, list]:
        out = {"input_ids": [], "labels": [], "seq_lengths": []}
        for index in batch["pack"]:
            table = self.rows[self.packs[index]]
            ids = table["input_ids"].combine_chunks()
            labels = table["labels"].combine_chunks()
            out["input_ids"].append(ids.flatten().to_numpy().astype(np.int64))
            learned = ids if self.learn == "all" else labels
            out["labels"].append(learned.flatten().to_numpy().astype(np.int64))
            out["seq_lengths"].append(ids.value_lengths().to_pylist())
            if self.kept is not None:
                kept = np.repeat(self.kept[self.packs[index]], out["seq_lengths"][-1])
                out.setdefault("kept", []).append(kept.tolist())
        return out


def pack_dataset(rows: Dataset, packs, count: int, learn: str, kept: np.ndarray | None = None) -> Dataset:
    """A data set of `count` packs, read when asked for."""
    return Dataset.from_dict({"pack": range(count)}).with_transform(PackReader(rows, packs, learn, kept))
