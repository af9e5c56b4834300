"""Raw data for train/prepare_data.py: folders, manifests, Hugging Face datasets, webdataset tars -> records.

A record is a dict with "text" and items of modalities by name, or with "messages", or with "document" (plain text); an
item is a path, the bytes of a file, or `{"bytes", "path"}` or `{"array", "sampling_rate"}` as datasets gives it.
`plan` cuts the data into units of so many rows without reading the media; `read` reads one unit, in any process that
sees the same files.

    folder         a.wav with a.txt (all media of one name make one record, of each modality one); a sound is of the
                   modality `audio`, unless its file is called a.music.wav or lies in a folder music/ (which may be the
                   one that is given)
    manifest       .jsonl or .parquet files, or a folder of them; paths in them are relative to the file
    datasets       a folder written by `save_to_disk`, or hf:NAME (or hf:NAME:SUBSET) for `load_dataset`
    webdataset     .tar files, or a folder of them: KEY.wav, KEY.txt, KEY.json, KEY.music.flac, ...

A source id says which row of which file it is. Where two inputs would give the same ones, as two folders or two files
of one name do, the ids of all begin with the number of their input: "1:a", "2:a".
"""

import functools
import hashlib
import itertools
import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from .rows import naming

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TEXT_SUFFIX = ".txt"
UNKNOWN = "?"  # column of files of other suffixes
TWICE = "!"  # column of a second file of a modality

# JSON-able: "kind", "root" (absolute), "name" (of the input, for messages and source ids), "first" and "count" of its
# rows, "number" of its input where source ids need it, and what its kind needs to find the rows.
Unit = dict[str, Any]


@dataclass(frozen=True)
class Names:
    """What a file in a folder or a tar is, by its name.

    Args:
        modalities: names of the modality table.
        heard: those that are sounds.
        audio, image: the modality of a sound and of a picture that don't say theirs.
    """

    modalities: Sequence[str]
    heard: Sequence[str]
    audio: str
    image: str | None

    def column(self, path: PurePosixPath) -> tuple[str, str | None]:
        """The record a file belongs to (its path without suffixes), and its column; None for a file to leave out."""
        suffix, stem = path.suffix.lower(), path.with_suffix("")
        if suffix == TEXT_SUFFIX:
            return str(stem), "text"
        if suffix not in AUDIO_SUFFIXES + IMAGE_SUFFIXES:
            return str(stem), None
        if stem.suffix[1:] in self.modalities:
            return str(stem.with_suffix("")), stem.suffix[1:]
        sound = suffix in AUDIO_SUFFIXES
        named = [part for part in path.parts[:-1] if part in self.modalities and (part in self.heard) == sound]
        return str(stem), named[-1] if named else self.audio if sound else self.image


def plan(inputs: Sequence[str], rows: int, names: Names, split: str) -> list[Unit]:
    """Units of at most `rows` source rows each, in a fixed order.

    Raises:
        ValueError: an input that is not there, empty, or of no known kind.
    """
    planned = [_plan_input(source, rows, names, split) for source in inputs]
    starts = [{"" if unit["kind"] == "folder" else unit["name"] for unit in units} for units in planned]
    if sum(map(len, starts)) > len(set().union(*starts)):  # source ids begin so
        planned = [[unit | {"number": i} for unit in units] for i, units in enumerate(planned, 1)]
    units = list(itertools.chain(*planned))
    if not units:
        raise ValueError(f"Got no rows in {', '.join(inputs)}. Give files with at least one.")
    return units


def plan_fingerprint(units: Sequence[Unit]) -> str:
    """Changes with names, sizes, texts and order of the source, not with the place where it lies."""
    return hashlib.sha256(json.dumps([unit | {"root": ""} for unit in units], sort_keys=True).encode()).hexdigest()


def read(unit: Unit) -> Iterator[tuple[str, dict | ValueError]]:
    """(source id, record) of every row; instead of the record of a row that can't be read, the reason why."""
    readers = {
        "folder": _read_folder,
        "jsonl": _read_jsonl,
        "parquet": _read_parquet,
        "hf": _read_hf,
        "tar": _read_tar,
    }
    for source, record in readers[unit["kind"]](unit):
        yield f"{unit['number']}:{source}" if "number" in unit else source, record


def columns(units: Sequence[Unit]) -> set[str]:
    """Columns that the first rows have. Raises ValueError, with the reason, if none of them can be read."""
    records = list(itertools.islice((record for unit in units for _, record in read(unit)), 64))
    if records and all(isinstance(record, ValueError) for record in records):
        raise ValueError(f"None of the first {len(records)} rows can be read, the first because: {records[0]}")
    return {key for record in records if isinstance(record, dict) for key in record}


def _plan_input(source: str, rows: int, names: Names, split: str) -> list[Unit]:
    if source.startswith("hf:"):
        return _plan_hf(source.removeprefix("hf:"), rows, split)
    path = Path(source).absolute()
    if not path.exists():
        raise ValueError(f"No such input: {source}. Give a folder or file; a dataset of the hub is hf:NAME.")
    if path.is_file():
        return _plan_file(path, rows, names)
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return _plan_hf(str(path), rows, split)
    for suffix in (".jsonl", ".parquet", ".tar"):
        files = sorted(path.glob(f"*{suffix}"))
        if files:
            return [unit for file in files for unit in _plan_file(file, rows, names)]
    return _plan_folder(path, rows, names)


def _plan_file(path: Path, rows: int, names: Names) -> list[Unit]:
    planners = {".jsonl": _plan_jsonl, ".parquet": _plan_parquet, ".tar": _plan_tar}
    if path.suffix not in planners:
        raise ValueError(f"Can't read {path.name}: need .jsonl, .parquet or (unpacked) .tar files, or a folder.")
    try:
        return planners[path.suffix](path, rows, names)
    except (tarfile.TarError, OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise ValueError(f"Can't read {path}: {error}") from None


# ---------------------------------------------------------------- folders


def _plan_folder(root: Path, rows: int, names: Names) -> list[Unit]:
    found: dict[str, dict[str, list]] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        relative = PurePosixPath(path.relative_to(root).as_posix())
        key, column = names.column(root.name / relative)
        key = str(PurePosixPath(key).relative_to(root.name))
        files, column = found.setdefault(key, {}), column or UNKNOWN
        stamp = zlib.crc32(path.read_bytes()) if column == "text" else path.stat().st_size
        files[TWICE if column in files and column != UNKNOWN else column] = [str(relative), stamp]
    records = [[key, files] for key, files in found.items() if set(files) != {UNKNOWN}]
    return [
        {"kind": "folder", "root": str(root), "name": root.name, "first": i, "count": len(part), "records": part}
        for i in range(0, len(records), rows)
        for part in [records[i : i + rows]]
    ]


def _read_folder(unit: Unit) -> Iterator[tuple[str, dict | ValueError]]:
    for key, files in unit["records"]:
        record: Any = {column: name for column, (name, _) in files.items()}
        unknown, second = record.pop(UNKNOWN, None), record.pop(TWICE, None)
        if second:
            record = ValueError(f"Can't use {second}: another file of its modality has that name. Rename one of them.")
        elif unknown and set(record) == {"text"}:  # a phone's recording, say; beside a medium nobody's business
            known = ", ".join(AUDIO_SUFFIXES + IMAGE_SUFFIXES)
            record = ValueError(f"Can't use {unknown}: known are {known}. Convert it.")
        elif "text" in record:
            try:
                record["text"] = (Path(unit["root"]) / record["text"]).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                record = ValueError(f"Can't read {record['text']}: {error}")
        yield key, record


# ---------------------------------------------------------------- manifests


def _plan_jsonl(path: Path, rows: int, names: Names) -> list[Unit]:
    common = {"kind": "jsonl", "root": str(path.parent), "name": path.name, "size": path.stat().st_size}
    units = []
    with open(path, "rb") as file:
        for first in itertools.count(0, rows):
            offset = file.tell()
            lines = list(itertools.islice(iter(file.readline, b""), rows))
            if lines:
                place = {"first": first, "count": len(lines), "offset": offset, "crc32": zlib.crc32(b"".join(lines))}
                units.append(common | place)
            if len(lines) < rows:
                return units


def _read_jsonl(unit: Unit) -> Iterator[tuple[str, dict | ValueError]]:
    with open(Path(unit["root"]) / unit["name"], "rb") as file:
        file.seek(unit["offset"])
        for row in range(unit["first"], unit["first"] + unit["count"]):
            line = file.readline()
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    record = ValueError(f"Got JSON of type {type(record).__name__}, need an object.")
            except (ValueError, RecursionError) as error:  # UnicodeDecodeError too
                record = ValueError(f"Not valid JSON: {error}")
            yield f"{unit['name']}:{row}", record


def _plan_parquet(path: Path, rows: int, names: Names) -> list[Unit]:
    common = {"kind": "parquet", "root": str(path.parent), "name": path.name, "size": path.stat().st_size}
    units, start = [], 0
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            for part in range(0, size, rows):
                count = min(rows, size - part)
                units.append(common | {"first": start + part, "count": count, "group": group, "part": part})
            start += size
    return units


def _read_parquet(unit: Unit) -> Iterator[tuple[str, dict | ValueError]]:
    path = Path(unit["root"]) / unit["name"]
    with naming(path), pq.ParquetFile(path) as file:
        seen = 0
        for batch in file.iter_batches(batch_size=64, row_groups=[unit["group"]]):
            # Batches don't respect our borders, and only what is asked for becomes Python objects.
            low, high = max(unit["part"] - seen, 0), min(unit["part"] + unit["count"] - seen, len(batch))
            for offset, record in enumerate(batch.slice(low, max(high - low, 0)).to_pylist()):
                yield f"{unit['name']}:{unit['first'] + seen + low + offset - unit['part']}", record
            seen += len(batch)
            if seen >= unit["part"] + unit["count"]:
                return


# ---------------------------------------------------------------- Hugging Face datasets


def _plan_hf(name: str, rows: int, split: str) -> list[Unit]:
    count = len(_open_hf(name, split))
    common = {"kind": "hf", "root": name, "name": Path(name).name, "split": split, "rows": count}
    return [common | {"first": i, "count": min(rows, count - i)} for i in range(0, count, rows)]


@functools.lru_cache(maxsize=1)  # a worker reads many units of one data set
def _open_hf(name: str, split: str) -> Any:
    import datasets

    try:
        if Path(name).is_dir() and (Path(name) / "dataset_info.json").exists():
            data = datasets.load_from_disk(name)
        elif (Path(name) / "dataset_dict.json").exists():
            data = datasets.load_from_disk(name)[split]
        else:
            repository, _, subset = name.partition(":")
            data = datasets.load_dataset(repository, subset or None, split=split)
    except KeyError:
        raise ValueError(f"{name} has no split {split!r}. Give one with --split.") from None
    except Exception as error:  # its own errors, those of the hub, of pyarrow, of fsspec
        raise ValueError(f"Can't load the dataset {name} (split {split}): {error}") from None
    # Files as they are: decoding `Audio` takes torchcodec, and the codecs' own readers check what they get.
    for column, feature in data.features.items():
        if isinstance(feature, (datasets.Audio, datasets.Image)):
            data = data.cast_column(column, type(feature)(decode=False))
    return data


def _read_hf(unit: Unit) -> Iterator[tuple[str, dict | ValueError]]:
    data = _open_hf(unit["root"], unit["split"])
    for row in range(unit["first"], unit["first"] + unit["count"]):
        yield f"{unit['name']}:{unit['split']}:{row}", data[row]


# ---------------------------------------------------------------- webdataset


def _plan_tar(path: Path, rows: int, names: Names) -> list[Unit]:
    common = {"kind": "tar", "root": str(path.parent), "name": path.name, "size": path.stat().st_size}
    common |= {"names": asdict(names)}
    keys: list[str] = []
    starts: list[int] = []  # where the header of each record's first file is
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key = _tar_key(member.name)
            if member.isfile() and (not keys or key != keys[-1]):
                keys.append(key)
                starts.append(member.offset)
        _check_end(path, tar.offset)
    return [
        common | {"first": i, "count": min(rows, len(keys) - i), "offset": starts[i]}
        for i in range(0, len(keys), rows)
    ]


def _check_end(path: Path, offset: int) -> None:
    """ValueError unless the archive is over at `offset`: tarfile takes a damaged header for its end."""
    with open(path, "rb") as file:
        file.seek(offset)
        if any(block.strip(b"\0") for block in iter(lambda: file.read(1 << 20), b"")):
            raise ValueError(f"no header of a file at byte {offset}, and more after it. Download or pack it again.")


def _read_tar(unit: Unit) -> Iterator[tuple[str, dict | ValueError]]:
    names = Names(**unit["names"])
    with open(Path(unit["root"]) / unit["name"], "rb") as file:
        file.seek(unit["offset"])
        with tarfile.open(fileobj=file, mode="r:") as tar:
            members = itertools.groupby((m for m in tar if m.isfile()), key=lambda member: _tar_key(member.name))
            for row, (key, group) in enumerate(itertools.islice(members, unit["count"]), unit["first"]):
                record: Any = {}
                for member in group:
                    data = tar.extractfile(member).read()
                    try:
                        columns = _tar_columns(member.name, data, names)
                        if columns.keys() & record.keys() & set(names.modalities):
                            raise ValueError("another file of its modality has that name. Rename one of them.")
                        record |= columns
                    except (ValueError, RecursionError) as error:
                        record = ValueError(f"Can't read {member.name}: {error}")
                        break
                yield f"{unit['name']}:{row}:{key}", record


def _tar_key(name: str) -> str:
    """As webdataset does: the path up to the first dot of the file's own name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _tar_columns(name: str, data: bytes, names: Names) -> dict:
    path = PurePosixPath(name)
    if path.suffix.lower() == ".json":
        fields = json.loads(data)
        return fields if isinstance(fields, dict) else {}
    column = names.column(path)[1]
    if column is None:
        return {}
    return {column: data.decode("utf-8") if column == "text" else data}
