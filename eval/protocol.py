"""Protocols: what exactly is measured, as YAML files that never change once numbers are published.

A file `protocols/SET/TASK.yaml` says everything that moves a number: the data and which of them, the prompt, the
decoding, the judges, and the rows of the table. Its hash stands in every result file. `protocols/README.md` lists
the keys.
"""

import dataclasses
import hashlib
import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent / "protocols"
METRICS = ("mean", *sorted(path.parent.name for path in Path(__file__).parent.glob("metrics/*/*.py")))
# What goes in and what comes out. "any": the examples say it themselves.
TASKS = {
    "asr": ("speech", "text"),
    "tts": ("text", "speech"),
    "image_captioning": ("image", "text"),
    "text_to_image": ("text", "image"),
    "music_captioning": ("music", "text"),
    "text_to_music": ("text", "music"),
    "speech_chat": ("speech", "speech"),
    "grammar": ("text", "any"),
}
SYSTEM_KINDS = ("model", "first", "codec", "original", "broken")


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: what is measured; `judge`: who measures it, in words.
        metric: "mean" of a judged field, or a module of `metrics/`.
        field: what of each record the metric takes: a judged field, "text" or "transcript" (the reply's), "medium".
        against: what text metrics compare with: "texts" (of the data) or "text" (the reply's own).
        options: further arguments of the metric; a "checkpoint" lies in the folder of judges and has a "revision".
        group: only the examples of this group.
        better: "higher" or "lower".
        floor: what a system without information scores.
        bar: what a release aims at: {"least": x}, {"most": x}, or relative to the "codec alone" column:
            {"least_of_codec": factor}, {"most_above_codec": difference}.
        reported: the number that the paper printed.
        systems: kinds of systems for which the row means something.
    """

    name: str
    metric: str
    judge: str = ""
    field: str = "text"
    against: str = "texts"
    options: dict = dataclasses.field(default_factory=dict)
    group: str | None = None
    better: str = "higher"
    floor: float | None = None
    bar: dict | None = None
    reported: float | None = None
    systems: tuple[str, ...] = SYSTEM_KINDS


@dataclass(frozen=True)
class Protocol:
    """A protocol file. `data`, `prompt`, `decoding` and `judges` are as `examples.py`, `systems.py` and `judges.py`
    read them; `known`, `unknown` and `choice` say what is known of the original protocol and what we decided. `name`,
    `hash` and `content` are the file's."""

    name: str
    task: str
    about: str
    data: dict
    prompt: list
    rows: list[Row]
    decoding: dict = dataclasses.field(default_factory=dict)
    judges: list[dict] = dataclasses.field(default_factory=list)
    known: str = ""
    unknown: str = ""
    choice: str = ""
    hash: str = ""
    content: dict = dataclasses.field(default_factory=dict)

    @property
    def target(self) -> str:
        return TASKS[self.task][1]

    @property
    def checkpoints(self) -> dict[str, str | None]:
        """{learned judge: its revision} of all judges and rows; "resemblyzer" is a package."""
        specs = [*self.judges, *(row.options for row in self.rows)]
        named = {spec["checkpoint"]: spec.get("revision") for spec in specs if "checkpoint" in spec}
        return {name: revision for name, revision in named.items() if name != "resemblyzer"}

    @property
    def packages(self) -> dict[str, str]:
        """{package: version} of the judges that are packages."""
        named = [spec["revision"] for spec in self.judges if "checkpoint" not in spec and "revision" in spec]
        return dict(each.partition(" ")[::2] for revision in named for each in revision.split(", "))


def read(path: Path) -> Protocol:
    """Reads a protocol file.

    Raises:
        ValueError: no such file, no YAML, unknown or missing keys, an unknown task or metric.
    """
    if not path.is_file():
        known = sorted(str(p.relative_to(FOLDER).with_suffix("")) for p in FOLDER.glob("*/*.yaml"))
        raise ValueError(f"No protocol {path}. There are: {', '.join(known)}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no keys. Known: {', '.join(f.name for f in fields(Protocol))}.")
    rows = [_make(Row, row, f"{path}, row {i}") for i, row in enumerate(content.get("rows") or [], 1)]
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False)
    own = {"name": f"{path.parent.name}/{path.stem}", "hash": hashlib.sha256(canonical.encode()).hexdigest()}
    protocol = _make(Protocol, content | own | {"rows": rows, "content": content}, str(path))
    if protocol.task not in TASKS:
        raise ValueError(f"{path}: unknown task {protocol.task!r}. Known: {', '.join(TASKS)}.")
    for row in rows:
        for key, known in (("metric", METRICS), ("better", ("higher", "lower")), ("against", ("texts", "text"))):
            if getattr(row, key) not in known:
                raise ValueError(
                    f"{path}, row {row.name!r}: {key} is {getattr(row, key)!r}. Known: {', '.join(known)}."
                )
    titles = [(row.name, row.judge) for row in rows]
    if twice := [name for name, judge in titles if titles.count((name, judge)) > 1]:
        raise ValueError(f"{path}: two rows are called {twice[0]!r} and have the same judge. Tell them apart.")
    return protocol


def choose(task: str, protocols: str) -> list[Protocol]:
    """The protocols of a set (a folder of `protocols/`, or a path) for one task, or for "all" that it has."""
    folder = FOLDER / protocols if (FOLDER / protocols).is_dir() else Path(protocols)
    if not folder.is_dir():
        known = ", ".join(sorted(p.name for p in FOLDER.iterdir() if p.is_dir()))
        raise ValueError(f"No set of protocols {protocols!r}. There are: {known}; or give a folder.")
    if task != "all":
        return [read(folder / f"{task}.yaml")]
    found = {path.stem: path for path in folder.glob("*.yaml")}
    if not found:
        raise ValueError(f"{folder} holds no protocols (TASK.yaml). Copy some of {FOLDER}.")
    return [read(found[name]) for name in sorted(found, key=lambda n: (list(TASKS).index(n) if n in TASKS else 99, n))]


def _make(kind: type, content: dict, where: str):
    """`content` as a dataclass; unknown and missing keys are errors."""
    if not isinstance(content, dict):
        raise ValueError(f"{where}: got {content!r}, need keys and values.")
    names = {f.name for f in fields(kind)}
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    unknown, missing = sorted(set(content) - names), sorted(needed - set(content))
    if unknown or missing:
        raise ValueError(
            f"{where}: unknown keys {unknown}, missing keys {missing}. Known: {', '.join(sorted(names))}."
        )
    values = {k: tuple(v) if k == "systems" else v for k, v in content.items()}
    return kind(**values)
