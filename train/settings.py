"""Settings of a training script: a YAML file, then `--key value` on the command line, into dataclasses.

    settings, training = parse((Settings, TrainingArguments), sys.argv[1:], __doc__)

`python train/script.py FILE.yaml --steps 10 --resume`: the file comes first and may be left out; its keys are fields
of the dataclasses, and the command line wins. A key that none of them has, a value of the wrong type and a missing key
are ValueErrors of one line. `run_script(main)` prints such errors without a traceback; `--debug` shows it.
"""

import dataclasses
import difflib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from transformers import HfArgumentParser


class Parser(HfArgumentParser):
    """Raises where argparse would print its whole usage and exit."""

    def error(self, message: str):
        raise ValueError(f"{message[0].upper()}{message[1:]} (--help lists all keys).")


def parse(classes: Sequence[type], argv: Sequence[str], doc: str | None = None) -> tuple:
    """One instance of each of the dataclasses `classes`, in their order.

    Raises:
        ValueError: a file that is no YAML mapping, an unknown or missing key, a value of the wrong type.
        OSError: the file can't be read.
    """
    words = list(argv)
    keys = [field.name for each in classes for field in dataclasses.fields(each) if field.init]
    if words and not words[0].startswith("-"):
        words[:1] = as_arguments(Path(words[0]), keys)
    parser = Parser(classes, description=doc, allow_abbrev=False)
    *instances, rest = parser.parse_args_into_dataclasses(
        words, return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        if not rest[0].startswith("--"):
            raise ValueError(f"Got {rest[0]!r}, allowed: [FILE.yaml] --key value ... (--help lists all keys).")
        raise unknown_key(rest[0].removeprefix("--").split("=")[0], "on the command line", keys)
    return tuple(instances)


class UniqueKeys(yaml.SafeLoader):
    """YAML in which no key stands twice: the first of two sources of one name would silently be none."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, name: str):
    """What a text of YAML holds. Raises ValueError, with `name`, if it is none or a key stands twice."""
    try:
        return yaml.load(text, UniqueKeys)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise ValueError(f"{name} is no YAML: {' '.join(str(error).split())}") from error


def read_yaml_file(path: Path):
    """What a file of YAML holds. Raises as `read_yaml`, and OSError if it can't be read."""
    try:
        return read_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error


def as_arguments(path: Path, keys: Sequence[str]) -> list[str]:
    """The YAML file as words of a command line; keys without a value are left at their default."""
    settings = read_yaml_file(path)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds {type(settings).__name__}, allowed: lines of `key: value`.")
    words: list[str] = []
    for key, value in settings.items():
        if key not in keys:
            raise unknown_key(str(key), f"in {path}", keys)
        if isinstance(value, list):
            words += [f"--{key}", *map(str, value)]
        elif value is not None:
            words.append(f"--{key}={json.dumps(value, default=str) if isinstance(value, dict) else value}")
    return words


def unknown_key(key: str, where: str, keys: Sequence[str]) -> ValueError:
    near = difflib.get_close_matches(key.replace("-", "_"), keys, n=1)
    return ValueError(f"Unknown key {key!r} {where}. {f'Did you mean {near[0]}? ' if near else ''}--help lists all.")


def run_script(main: Callable[[list[str]], None]) -> None:
    """Runs `main` on the command line. What the user can mend becomes one line on standard error and exit code 2."""
    words = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        main(words)
    except (ValueError, OSError, ImportError) as error:
        if len(words) < len(sys.argv) - 1:
            raise
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
