"""What the command line takes as input and leaves behind: files by type, outputs by temporary name and rename.

Imports nothing heavy, so that a wrong argument is reported before a model is loaded.
"""

import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TEXT_SUFFIXES = (".txt", ".md")
DEFAULT_MODEL = Path(__file__).parent.parent / "modeling_anygpt" / "pretrained" / "anygpt_tiny"


def as_block(value: str, modalities: list[str], audio: str = "speech") -> dict:
    """One INPUT of the command line as a content block of a message.

    `NAME:FILE` with a modality's name says what a file is; otherwise its suffix does, and a sound is `audio`. What is
    no file and has no media suffix is text.

    Raises:
        FileNotFoundError: a media file that does not exist.
        ValueError: empty text, a folder, or a file of a type that nothing here reads.
    """
    name, _, rest = value.partition(":")
    if rest and name in modalities and (Path(rest).suffix.lower() in AUDIO_SUFFIXES + IMAGE_SUFFIXES or is_file(rest)):
        return {"type": name, "path": existing(rest)}
    if rest and name.isidentifier() and is_file(rest):
        raise ValueError(f"Unknown modality {name!r} of {rest!r}. This model knows: {', '.join(modalities)}.")
    suffix = Path(value).suffix.lower()
    if suffix in AUDIO_SUFFIXES:
        return {"type": audio, "path": existing(value)}
    if suffix in IMAGE_SUFFIXES:
        return {"type": "image", "path": existing(value)}
    if is_file(value):
        if suffix not in TEXT_SUFFIXES:
            known = " ".join(AUDIO_SUFFIXES + IMAGE_SUFFIXES + TEXT_SUFFIXES)
            raise ValueError(
                f"Cannot tell what {value!r} is by its suffix. Known: {known}. Or say it, for example speech:{value}"
            )
        value = read_text(value)
    elif value.strip() and os.path.isdir(value):
        raise ValueError(f"{value!r} is a folder. Give files or text.")
    if not value.strip():
        raise ValueError("Got an empty text. Give some words, a file, or - to read text from standard input.")
    return {"type": "text", "text": value.strip()}


def usual_sound(heard: list[str]) -> str | None:
    """What a sound is that doesn't say: speech, or what else a model hears (`heard`, by name); None if nothing."""
    return "speech" if "speech" in heard else next(iter(heard), None)


def is_file(value: str) -> bool:
    """Whether a file of this name exists; a long text is no name, and some systems refuse to look it up."""
    try:
        return os.path.isfile(value)
    except (OSError, ValueError):
        return False


def existing(path: str) -> str:
    if os.path.isdir(path):
        raise ValueError(f"{path!r} is a folder, need a file.")
    if not is_file(path):
        raise FileNotFoundError(f"No such file: {path}")
    return path


def read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")  # editors on Windows begin a text with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path!r} is not UTF-8 text ({error.reason} at byte {error.start}).") from None


def model_config(folder: str | os.PathLike) -> dict:
    """The config.json of a checkpoint folder, read without loading anything.

    Raises:
        ValueError: not a folder that AnyGPT models are loaded from.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"No such model folder: {folder}. Give a folder with config.json and weights; from the hub first run "
            "`hf download ORG/NAME --local-dir FOLDER`."
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} is not a model folder: it has no config.json.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / 'config.json'} is not valid JSON ({error}).") from None
    if not isinstance(config, dict) or "modalities" not in config:
        kind = config.get("model_type") if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"{folder} holds a {kind!r} model, not an AnyGPT one: its config.json has no modality table.")
    rows = config["modalities"]
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows
    ):
        raise ValueError(f"The modalities of {folder / 'config.json'} are not a list of rows with a name each.")
    return config


def check_modality(name: str, config: dict, text: bool = True) -> dict:
    """The row of the modality table for `name` ({} for text, where it is allowed)."""
    if text and name == "text":
        return {}
    rows = {row["name"]: row for row in config["modalities"]}
    if name not in rows:
        known = ", ".join(["text"] * text + list(rows))
        raise ValueError(f"Unknown modality {name!r}. This model knows: {known}.")
    return rows[name]


def default_suffix(row: dict) -> str:
    """File type of a modality, from its row of the table ({} is text)."""
    if not row:
        return ".txt"
    return ".wav" if row.get("sampling_rate") else ".png"


def check_writable(path: str | os.PathLike, row: dict) -> Path:
    """The output path, checked before minutes are spent on what goes there."""
    path = Path(path)
    allowed = (".txt",) if not row else (".wav", ".flac") if row.get("sampling_rate") else (".png", ".jpg", ".webp")
    if path.suffix.lower() not in allowed:
        raise ValueError(f"Cannot write {path.name!r}: the name must end in {' or '.join(allowed)}.")
    if path.is_dir():
        raise ValueError(f"Cannot write {path}: it is a folder.")
    writable_folder(path.parent)
    return path


def writable_folder(folder: str | os.PathLike, create: bool = False) -> Path:
    """`folder`, if files can be made in it. A trial file is the only honest test (read-only mounts, full disks)."""
    folder = Path(folder)
    try:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"Cannot write to folder {folder}: {error.strerror}.") from None
    return folder


def write_atomic(path: str | os.PathLike, write) -> Path:
    """Calls `write(temporary_path)` and renames, so that a reader never sees half a file. The suffix is kept: savers
    choose the format by it."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@contextmanager
def new_folder(path: str | os.PathLike):
    """Yields a temporary folder beside `path` and renames it at the end, so that `path` appears whole or not at all.

    Raises:
        ValueError: `path` exists, or can't be made.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} exists already. Give the name of a new folder, or remove it.")
    writable_folder(path.parent, create=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
