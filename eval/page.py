"""The report as one self-contained web page: tables, plots, samples and worst cases of every protocol."""

import io
from pathlib import Path

import jinja2
import soundfile
import tables
from protocol import TASKS, Protocol, Row

from examples import Example, load, picture, sound, target_of
from processing_anygpt.files import write_text
from serving_anygpt.demo import data_uri, show_picture
from serving_anygpt.spectrogram import spectrogram_png

SAMPLES = 3  # first items and worst items of each protocol
SHOWN = 3  # systems whose answers stand side by side


def write(path: Path, systems: dict, model: str, data: Path | None) -> None:
    """Writes the page.

    Args:
        systems: as `tables.load` gives them; `model`: the one that the others are compared with.
        data: root of the data, to show what the models were shown; None: only what they answered.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    text = template.render(
        model=model,
        systems=[facts(name, results) for name, results in systems.items()],
        tables=[table(systems, model, protocol) for protocol in protocols(systems)],
        sections=[section(systems, model, protocol, data) for protocol in protocols(systems)],
        versions=next(iter(systems[model].values()))["versions"],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def protocols(systems: dict) -> list[str]:
    return list(dict.fromkeys(line["protocol"] for line in tables.lines(systems)))


def facts(name: str, results: dict) -> dict:
    first = next(iter(results.values()))
    seconds = sum(result["run"]["seconds"] for result in results.values())
    deviations = sorted({text for result in results.values() for text in result["deviations"]})
    return {"name": name, "seed": first["seed"], "date": first["run"]["date"], "seconds": seconds} | {
        "kind": first["system"]["kind"],
        "parameters": first["system"].get("parameters"),
        "fingerprint": first["system"].get("fingerprint", "")[:12],
        "deviations": deviations,
    }


def table(systems: dict, model: str, protocol: str) -> dict:
    """The rows of a protocol with a cell for every system and the numbers of their plot."""
    codec = (tables.of_kind(systems, "codec") or [None])[0]
    rows = []
    for line in (line for line in tables.lines(systems) if line["protocol"] == protocol):
        row = line["row"]
        bar, limit = tables.bar_of(line, codec)
        marks = [cell[key] for cell in line["cells"].values() for key in ("low", "high")]
        marks += [x for x in (limit, row["floor"], row["reported"]) if x is not None]
        low, high = min([0.0, *marks]), max([*marks, 1e-9])
        cells = []
        for name in systems:
            cells.append({"row": line["cells"].get(name), "compared": tables.compared(line, name, model)})
        rows.append({"row": row, "bar": bar, "limit": limit, "cells": cells, "low": low, "span": high - low})
    name = next(results[protocol] for results in systems.values() if protocol in results)
    return {"protocol": protocol, "hash": name["protocol"]["hash"][:12], "about": name["about"], "rows": rows}


def section(systems: dict, model: str, protocol: str, data: Path | None) -> dict:
    """First and worst items of a protocol, with the answers of up to `SHOWN` systems."""
    shown = [name for name in [model, *(n for n in systems if n != model)] if protocol in systems[name]][:SHOWN]
    result = systems[shown[0]][protocol]
    records = {name: {r["id"]: r for r in systems[name][protocol]["items"]} for name in shown}
    scored = next((row for row in result["rows"] if "items" in row), None)
    first, worst = [record["id"] for record in result["items"][:SAMPLES]], []
    if scored:
        sign = 1 if scored["better"] == "higher" else -1
        order = sorted(scored["items"], key=lambda i: sign * scored["items"][i][0])
        worst = [i for i in order if i not in first][:SAMPLES]
    known: dict[str, Example] = {}
    if data is not None:
        content = result["protocol"]["file"]
        rows = [Row(**row) for row in content["rows"]]
        wanted = Protocol(**content | {"rows": rows, "name": protocol})
        known = {example.id: example for example in load(wanted, data)}
    items = []
    for group, ids in (("", first), (f"worst by {scored['name']}" if scored else "", worst)):
        for i in ids:
            answers = [
                (name, answer(records[name][i], systems[name][protocol]["folder"]))
                for name in shown
                if i in records[name]
            ]
            asked = [{"kind": "text", "label": "", "text": " | ".join(result_texts(result, i))}]
            asked += given(known[i], wanted) if i in known else []
            score = scored["items"].get(i) if scored else None
            items.append({"group": group, "id": i, "asked": asked, "answers": answers, "score": score and score[0]})
    return {"protocol": protocol, "items": items}


def result_texts(result: dict, item: str) -> list[str]:
    return next(record["texts"] for record in result["items"] if record["id"] == item)


def given(example: Example, protocol: Protocol) -> list[dict]:
    """What the model was shown, and the medium as it should come out."""
    media = [
        ("shown", TASKS[protocol.task][0], example.given),
        ("reference", target_of(protocol, example), example.reference),
    ]
    if example.given is None:
        media.append(("in this voice", "speech", example.voice))
    return [show(medium, kind, label) for label, kind, medium in media if medium is not None]


def answer(record: dict, folder: Path) -> list[dict]:
    """A record of a result file, for the page."""
    parts = []
    if record["transcript"]:
        parts.append({"kind": "text", "label": "heard", "text": record["transcript"]})
    if record["text"] or record["medium"] is None:
        parts.append({"kind": "text", "label": "", "text": record["text"] or "(nothing)"})
    if record["medium"]:
        kind = "image" if record["medium"].endswith(".png") else "sound"
        parts.append(show(str(folder / record["medium"]), kind, record["problem"] or ""))
    judged = ", ".join(f"{key} {value}" for key, value in record["judged"].items())
    return [*parts, {"kind": "judged", "label": "", "text": judged}]


def show(medium, kind: str, label: str) -> dict:
    if kind == "image":
        return show_picture(picture(medium)) | {"label": label}
    waveform, rate = sound(medium)
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format="FLAC")
    image = data_uri("image/png", spectrogram_png(waveform, rate))
    source = data_uri("audio/flac", buffer.getvalue())
    return {
        "kind": "sound",
        "label": label,
        "source": source,
        "spectrogram": image,
        "caption": f"{len(waveform) / rate:.1f} s",
    }
