"""Raw media to training rows: python train/prepare_data.py DATA --out rows/mine

DATA: a folder (a.wav beside a.txt), .jsonl or .parquet files with columns text, speech, image, music, messages or
document (plain text, no conversation; cut into rows of --max-tokens), a Hugging Face dataset (a `save_to_disk` folder,
or hf:NAME), webdataset .tar files; processing_anygpt/sources.py has the details. The result, one parquet shard for
every --rows-per-shard source rows, is what processing_anygpt/rows.py describes; look at it with train/show_row.py.
Stopped or killed, the same command goes on where it was: shards appear whole, and everything in them follows from the
settings.

    python train/prepare_data.py clips/ --out rows/asr --directions x-to-text --workers 2
    python train/prepare_data.py pairs.jsonl --out rows/music --audio music --columns text=title music=file --cut music
    python train/prepare_data.py 'shards/*.tar' --out rows/web --address auto --gpus-per-worker 0.5 --pad-seconds 0.5

--workers 0 works in this process, without Ray. With --address the checkpoint, the data and --out have to be at the
same paths on every machine.
"""

import argparse
import glob
import json
import sys
import time
from pathlib import Path

from tqdm import tqdm

import modeling_anygpt
from processing_anygpt import preparation, rows, sources, workers
from processing_anygpt.instructions import load_instructions
from processing_anygpt.media import MAX_SECONDS
from processing_anygpt.vocabulary import find_modality
from serving_anygpt.media import usual_sound

TINY = Path(modeling_anygpt.__file__).parent / "pretrained" / "anygpt_tiny"


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data", nargs="+", metavar="DATA")
    add("--out", type=Path, required=True, help="folder of the rows")
    add("--model", default=str(TINY), help="AnyGPT checkpoint that will be trained (default: anygpt-tiny)")
    add("--directions", choices=preparation.DIRECTIONS, default="both", help="random: one of the two for each medium")
    add("--loss", choices=preparation.LOSSES, default="assistant", help="learn the assistant's turns, or all tokens")
    add("--transcripts", choices=preparation.TRANSCRIPTS, default="free", help="learned, given or left out")
    add("--instructions", metavar="YAML", help="sentences to use instead of processing_anygpt/instructions.yaml")
    add("--columns", nargs="+", default=[], metavar="NAME=COLUMN", help="where text, messages, speech, ... are")
    add("--audio", metavar="NAME", help="modality of sound files in folders and tars (default: speech)")
    add("--voice-seconds", type=float, default=0.0, metavar="S", help="of the same speaker (column speaker; else all "
        "are one) before requests for speech, as `anygpt generate --voice` has it (default: none)")  # fmt: skip
    add("--read-back", metavar="WORDS", help="a row more for all that is made: shown it with these words, tell the "
        "request. By that `generate` chooses among replies (of anygpt-tiny: 'what was asked for')")  # fmt: skip
    add("--cut", nargs="+", default=[], metavar="NAME", help="modalities whose longer sound is cut, not rejected")
    add("--pad-seconds", type=float, default=0.0, metavar="S", help="add silence up to a multiple, for larger batches")
    add("--max-tokens", type=int, metavar="N", help="longest row (default: the checkpoint's context)")
    add("--split", default="train", help="of a Hugging Face dataset (default: train)")
    add("--seed", type=int, default=0, help="of the instructions and directions")
    add("--rows-per-shard", type=int, default=256, metavar="N", help="source rows of a unit of work (default: 256)")
    add("--workers", type=int, metavar="N", help="processes (default: one for each core or GPU share)")
    add("--gpus-per-worker", type=float, default=0.0, metavar="G", help="0.5: two workers share a GPU (default: CPU)")
    add("--address", help="of a Ray cluster (default: this machine)")
    add("--json", action="store_true", help="the result as a JSON object, no progress")
    args = parser.parse_args(argv)
    allowed = {"rows_per_shard": (1, None), "workers": (0, None), "max_tokens": (2, None)}
    allowed |= {"pad_seconds": (0, MAX_SECONDS), "voice_seconds": (0, MAX_SECONDS), "gpus_per_worker": (0, None)}
    for name, (low, high) in allowed.items():
        given = getattr(args, name)
        if given is not None and not (low <= given < float("inf") and (high is None or given <= high)):
            limits = f"{low} and more" if high is None else f"{low} to {high:g}"
            parser.error(f"argument --{name.replace('_', '-')}: {given}, allowed are {limits}")
    if args.read_back is not None and not args.read_back.strip():
        parser.error("argument --read-back: got no words. Give some, or leave it out")
    return args


def build(args: argparse.Namespace) -> tuple[preparation.Settings, list[sources.Unit], dict]:
    """Settings, units of work and the facts of the manifest; ValueError for whatever is known to be wrong by now."""
    workers.check_gpus(args.gpus_per_worker, args.workers, args.address)
    config, processor = preparation.load_checkpoint(args.model)
    names = [spec.name for spec in processor.specs]
    heard = [spec.name for spec in processor.specs if spec.sampling_rate is not None]
    args.audio = args.audio or usual_sound(heard)
    for name in [*args.cut, *([args.audio] if args.audio else [])]:
        if find_modality(processor.specs, name).name not in heard:
            raise ValueError(f"{name} is no sound: --audio and --cut take {', '.join(heard)}.")
    columns = dict(item.partition("=")[::2] for item in args.columns)
    allowed = preparation.column_names({}, names)
    for name, column in columns.items():
        if not column or name not in allowed:
            raise ValueError(f"--columns takes NAME=COLUMN with NAME of {', '.join(allowed)}; got {name!r}.")
    settings = preparation.Settings(
        max_tokens=args.max_tokens or config.text_config.max_position_embeddings,
        directions=args.directions,
        loss=args.loss,
        transcripts=args.transcripts,
        seed=args.seed,
        rows_per_shard=args.rows_per_shard,
        pad_seconds=args.pad_seconds,
        voice_seconds=args.voice_seconds,
        read_back=args.read_back,
        cut=tuple(sorted(args.cut)),
        columns=columns,
        instructions=load_instructions(names, args.instructions),
    )
    picture = next((spec.name for spec in processor.specs if spec.image_size is not None), None)
    inputs = [path for given in args.data for path in (sorted(glob.glob(given)) or [given])]
    units = sources.plan(inputs, args.rows_per_shard, sources.Names(names, heard, args.audio, picture), args.split)
    check_columns(sources.columns(units), columns, names)
    facts = {
        "settings": settings.to_dict(),
        "modalities": names,
        "tokenizer": rows.vocabulary_fingerprint(processor.tokenizer),
        "system_prompt": processor.system_prompt,
        "turn_separator": processor.turn_separator,
        "codecs": preparation.codec_fingerprints(processor),
        "input": sources.plan_fingerprint(units),
        "units": len(units),
    }
    return settings, units, facts


def check_columns(found: set[str], columns: dict[str, str], names: list[str]) -> None:
    listed = ", ".join(sorted(found)) or "none"
    for name, column in columns.items():
        if column not in found:
            raise ValueError(f"The data have no column {column!r} for {name}. They have: {listed}.")
    usual = preparation.column_names(columns, names)
    media = [usual[name] for name in names]
    whole = found & {usual["messages"], usual["document"]}
    if not whole and not (usual["text"] in found and found & set(media)):
        raise ValueError(
            f"The data need {usual['text']!r} and one of {', '.join(media)}, or {usual['messages']!r}, or "
            f"{usual['document']!r}; they have: {listed}. Name them with --columns."
        )


def run(args: argparse.Namespace) -> dict:
    settings, units, facts = build(args)
    todo = rows.begin(args.out, facts)
    total, waiting = sum(unit["count"] for unit in units), sum(units[index]["count"] for index in todo)
    job = workers.Job(args.model, settings, args.out.absolute(), "cuda" if args.gpus_per_worker else "cpu")
    start, spans = time.time(), []
    bar = {"total": total, "initial": total - waiting, "unit": " rows", "smoothing": 0.05, "disable": args.json}
    with tqdm(desc="prepare", file=sys.stderr, **bar) as progress:
        for index, *span in workers.make_shards(job, units, todo, args.workers, args.gpus_per_worker, args.address):
            spans.append([units[index]["count"], *span])
            progress.update(units[index]["count"])
    manifest = rows.finish(args.out, facts)
    report = {"source_rows": total, "prepared": waiting, "seconds": time.time() - start}
    if not manifest["rows"]:
        raise ValueError(f"None of {total} became a row; the reasons stand in {args.out / 'rejects.jsonl'}.")
    report["spans"] = spans  # (rows, start, end, worker) of each unit, for benchmarks/prepare.py
    return report | {key: manifest[key] for key in ("rows", "rejected", "tokens", "learned_tokens", "tasks")}


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        report = run(args)
    except (ValueError, OSError) as error:
        print(f"prepare_data.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps(report))
    else:
        tasks = ", ".join(f"{count} {task}" for task, count in report["tasks"].items())
        print(f"{args.out}: {report['rows']} rows, {report['tokens']} tokens ({tasks}); {report['rejected']} rejected")
    return 0


if __name__ == "__main__":
    sys.exit(main())
