"""Result files -> tables: one line a row of the protocols, one column a system; markdown for cards and documents."""

import json
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard
from protocol import SYSTEM_KINDS, TASKS, Protocol

from processing_anygpt.files import write_text
from processing_anygpt.judging.scores import compare

HUB_TASKS = {  # names of the Hub's task pages
    "asr": "automatic-speech-recognition",
    "tts": "text-to-speech",
    "image_captioning": "image-to-text",
    "text_to_image": "text-to-image",
    "music_captioning": "audio-text-to-text",
    "text_to_music": "text-to-audio",
    "speech_chat": "any-to-any",
    "grammar": "any-to-any",
}
# What the mean of a judged field is called in a model-index, where it is not the share of right answers.
MEANS = {
    "quality": "dnsmos",
    "similarity": "speaker_similarity",
    "clip_score": "clip_score",
    "clip_i": "clip_i",
    "clap_score": "clap_score",
    "note_f1": "f1",
    "malformed": "error_rate",
}
LIMITED = "examples of each group only"  # how a deviation of run.py --limit ends
SIGNIFICANT = 0.05  # two-sided p of the paired bootstrap
FEWEST = 6  # items that a difference must rest on: with fewer even a sign test can't reach that p


def load(folders: list[Path]) -> dict[str, dict[str, dict]]:
    """All result files below the folders: {system: {protocol: result}}, models first.

    Raises:
        ValueError: there are none, or some that can't stand in one table (`refuse_mixtures`).
    """
    found: dict[str, dict[str, dict]] = {}
    for path in sorted({path for folder in folders for path in folder.glob("*/*.json")}):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}). Run its task again.") from None
        if not isinstance(result, dict) or not {"system", "protocol", "rows"} <= set(result):
            raise ValueError(f"{path} is no result file. Give folders that hold nothing but eval/run.py's --out.")
        result["folder"] = path.parent
        for other in (other for results in found.values() for other in results.values()):
            refuse_mixtures(other, result)
        found.setdefault(result["system"]["name"], {})[result["protocol"]["name"]] = result
    if not found:
        raise ValueError(f"No result files in {', '.join(map(str, folders))}: eval/run.py --out FOLDER makes them.")
    return dict(sorted(found.items(), key=lambda pair: SYSTEM_KINDS.index(kind_of(pair[1]))))


def refuse_mixtures(first: dict, second: dict) -> None:
    """Two results of one table must be of one version of a protocol and its data, and a system's of one checkpoint.

    Raises:
        ValueError: they are not, or they are two results of one system for one protocol.
    """
    folders = " and ".join(dict.fromkeys(str(result["folder"]) for result in (first, second)))
    name, task = second["system"]["name"], second["protocol"]["name"]
    same_protocol, same_system = first["protocol"]["name"] == task, first["system"]["name"] == name
    if same_protocol and first["protocol"]["hash"] != second["protocol"]["hash"]:
        raise ValueError(f"{folders} hold results of two versions of the protocol {task}. Run one of them again.")
    if same_protocol:
        texts = {item["id"]: item["texts"] for item in first.get("items", [])}
        for item in second.get("items", []):
            if item["texts"] != texts.get(item["id"], item["texts"]):
                raise ValueError(f"{folders} hold results for {task} of two data sets: {item['id']} is another text.")
    if same_protocol and same_system:
        raise ValueError(f"{folders} hold two results of {name!r} for {task}. Name one anew: run.py --model NAME=...")
    if same_system and first["system"].get("fingerprint") != second["system"].get("fingerprint"):
        raise ValueError(
            f"{folders} hold results of two checkpoints called {name!r}: {first['protocol']['name']} is of another "
            f"than {task}. Run all tasks again, or remove what is older."
        )


def kind_of(results: dict[str, dict]) -> str:
    return next(iter(results.values()))["system"]["kind"]


def of_kind(systems: dict, kind: str) -> list[str]:
    return [name for name, results in systems.items() if kind_of(results) == kind]


def lines(systems: dict) -> list[dict]:
    """Every row of every protocol: {"protocol", "task", "row": its description, "cells": {system: scored row}}."""
    table: dict[tuple, dict] = {}
    tasks = list(TASKS)
    for system, results in systems.items():
        for result in results.values():
            order = [title(row) for row in result["protocol"]["file"]["rows"]]
            for row in result["rows"]:
                key = (tasks.index(result["task"]), result["protocol"]["name"], order.index(title(row)))
                line = {"protocol": key[1], "task": result["task"], "row": row, "cells": {}}
                table.setdefault(key, line)["cells"][system] = row
    return [table[key] for key in sorted(table)]


def title(row: dict) -> tuple[str, str]:
    """What tells rows of a protocol apart: one thing may be measured by several judges."""
    return row["name"], row.get("judge", "")


def difference(a: dict, b: dict, better: str) -> dict | None:
    """Two scored rows compared on the items that both have: `compare`'s result with "verdict": "better", "worse" or
    "" (of a); None where the metric has no score of an item."""
    both = [i for i in a.get("items", {}) if i in b.get("items", {})]
    if not both:
        return None
    (mine, shares), (other, others) = (zip(*(row["items"][i] for i in both), strict=True) for row in (a, b))
    found = compare(mine, other, shares, others)
    up = (found["difference"] > 0) == (better == "higher")
    sure = len(both) >= FEWEST and found["p"] < SIGNIFICANT and found["difference"] != 0
    return found | {"verdict": ("better" if up else "worse") if sure else ""}


def compared(line: dict, name: str, model: str) -> dict | None:
    """`difference` of a system's cell and the model's; None for the model itself and where one is missing."""
    cell, against = line["cells"].get(name), line["cells"].get(model)
    return difference(cell, against, line["row"]["better"]) if cell and against and name != model else None


def bar_of(line: dict, codec: str | None) -> tuple[str, float | None]:
    """A row's bar in words and as a number, once the codec's score is known where it is relative."""
    bar = line["row"]["bar"] or {}
    alone = line["cells"].get(codec, {}).get("value")
    if "least" in bar or "most" in bar:
        limit = bar.get("least", bar.get("most"))
    elif not bar or alone is None:
        return "", None
    else:
        limit = alone * bar["least_of_codec"] if "least_of_codec" in bar else alone + bar["most_above_codec"]
    least = "least" in bar or "least_of_codec" in bar
    return f"{'>=' if least else '<='} {limit:.2f}", limit


def reached(row: dict, limit: float) -> bool:
    return row["value"] >= limit if row["better"] == "higher" else row["value"] <= limit


def number(row: dict | None, interval: bool = False) -> str:
    if row is None:
        return ""
    text = f"{row['value']:.3f}"
    return f"{text} [{row['low']:.3f}, {row['high']:.3f}]" if interval else text


# ---------------------------------------------------------------- markdown


def card_table(systems: dict, model: str) -> str:
    """The table of a model card: the model, its bars, and what its first replies, its codecs alone and the originals
    get, of those that were run."""
    kinds = {"first": "first reply", "codec": "codec alone", "original": "original"}
    others = {names[0]: kinds[kind] for kind in kinds if (names := of_kind(systems, kind))}
    codec = (of_kind(systems, "codec") or [None])[0]
    columns = ["task", "judge", "value [95 %]", "items", "bar", *others.values()]
    text = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    for line in lines({name: systems[name] for name in (model, *others)}):
        row, cell = line["row"], line["cells"].get(model)
        bar, limit = bar_of(line, codec)
        judged = cell or line["cells"].get(codec)
        if limit is not None and judged:
            bar += ", reached" if reached(judged, limit) else ", missed"
        count = str(judged["count"]) if judged else ""  # nor the codec's: only the original was run
        cells = [row["name"], row["judge"], number(cell, True), count, bar]
        cells += [number(line["cells"].get(name)) for name in others]
        text += f"| {' | '.join(cells)} |\n"
    return text + limits(systems)


def comparison_table(systems: dict, model: str) -> str:
    """All systems side by side; ▲ better, ▼ worse than the model on the same items."""
    marks = {"better": " ▲", "worse": " ▼"}
    text = f"| task | judge | {' | '.join(systems)} |\n|---|---|{'---|' * len(systems)}\n"
    for line in lines(systems):
        cells = [line["row"]["name"], line["row"]["judge"]]
        for name in systems:
            found = compared(line, name, model) or {}
            cells.append(number(line["cells"].get(name), True) + marks.get(found.get("verdict"), ""))
        text += f"| {' | '.join(cells)} |\n"
    return text + limits(systems)


def limits(systems: dict) -> str:
    """Lines below a table that say of which systems only some examples were tried; "" where there are none."""
    results = [(name, result) for name, found in systems.items() for result in found.values()]
    tried = {f"{name}: {text}." for name, result in results for text in result["deviations"] if LIMITED in text}
    return "".join(f"\n{line}\n" for line in sorted(tried))


def floor_table(systems: dict, model: str) -> str:
    """Deliberately broken models beside the model; "(!)" where one scores above the floor. Rows without one are left
    out: they can't show anything (DNSMOS listens for noise, not for words)."""
    broken, codecs = of_kind(systems, "broken"), of_kind(systems, "codec")[:1]
    text = f"| task | judge | {model} | {' | '.join(broken)} | floor |\n|---|---|---|{'---|' * len(broken)}---|\n"
    for line in lines({name: systems[name] for name in (model, *codecs, *broken)}):
        row = line["row"]
        if row["floor"] is None or not any(name in line["cells"] for name in broken):
            continue
        whole = number(line["cells"].get(model))
        if not whole and codecs:  # a row that is about the codecs
            whole = f"codec alone: {number(line['cells'].get(codecs[0]))}"
        cells = [row["name"], row["judge"], whole]
        cells += [
            number(line["cells"].get(name)) + ("" if at_floor(line["cells"].get(name)) else " (!)") for name in broken
        ]
        text += f"| {' | '.join([*cells, str(row['floor'])])} |\n"
    return text


def protocol_table(protocols: list[Protocol]) -> str:
    """What is known of the original protocols, and what was chosen."""
    rows = [f"| {p.task} | {p.known} | {p.unknown} | {p.choice} |\n" for p in protocols]
    return "| task | known | unknown | our choice |\n|---|---|---|---|\n" + "".join(rows)


def at_floor(row: dict | None) -> bool:
    """Whether a score is not better than that of a system without information, as far as its interval tells."""
    if row is None or row["floor"] is None:
        return True
    return row["low"] <= row["floor"] if row["better"] == "higher" else row["high"] >= row["floor"]


def write_block(path: Path, name: str, text: str) -> None:
    """Puts `text` between the lines `<!-- NAME: begin -->` and `<!-- NAME: end -->` of a file.

    Raises:
        ValueError: the file has no such lines.
    """
    old = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name}: begin[^\n]*-->\n).*?(<!-- {name}: end -->)", re.DOTALL)
    if not pattern.search(old):
        raise ValueError(f"{path} has no lines <!-- {name}: begin --> and <!-- {name}: end -->. Add them.")
    write_text(path, pattern.sub(lambda found: f"{found[1]}{text}{found[2]}", old))


def write_model_index(path: Path, systems: dict, model: str) -> None:
    """The `model-index` of a Hub model card, in its front matter."""
    results = []
    for line in lines({model: systems[model]}):
        row, result = line["cells"][model], systems[model][line["protocol"]]
        field = next(r.get("field") for r in result["protocol"]["file"]["rows"] if title(r) == title(row))
        results.append(
            EvalResult(
                task_type=HUB_TASKS[line["task"]],
                dataset_type=line["protocol"],
                dataset_name=result["about"],
                dataset_revision=result["sample"][:12],
                metric_type=MEANS.get(field, "accuracy") if row["metric"] == "mean" else row["metric"],
                metric_name=f"{row['name']} ({row['judge']})" if row["judge"] else row["name"],
                metric_value=row["value"],
                metric_args={"low": row["low"], "high": row["high"], "items": row["count"]},
            )
        )
    card = ModelCard.load(path)
    card.data.model_name, card.data.eval_results = model, results
    write_text(path, str(card))
