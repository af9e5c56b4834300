"""Rows a second of train/prepare_data.py against the number of workers: python benchmarks/prepare.py --workers 1 2

Encodes the recordings, pictures and tunes of examples/ with the codecs of anygpt-tiny, over and over, always from the
file; or, with --data, any input that prepare_data takes. Every number of workers makes all the rows, in a run of its
own, --rounds times in turn (the best counts); the rows have to be the same. Rows a second are counted from the first
unit of work to the end of the last, without the start of Ray and of the workers, which is shown beside it. Prints a
table, and JSON with --json FILE. Wants a machine with nothing else to do.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from processing_anygpt import rows

ROOT = Path(__file__).resolve().parent.parent
SAID = "a small yellow heart left of a small pink star"
CLIPS = [
    *[("speech", f"{name}.wav", SAID) for name in ("voice", "voice_slt", "voice_rms", "voice_kal16", "voice_hibari")],
    ("speech", "recording.wav", "the horse wants the apple tomorrow"),
    ("speech", "digits.wav", "one three nine eight"),
    ("speech", "digits_2.wav", "four eight four seven"),
    ("image", "picture_single.png", "a big purple heart"),
    ("image", "picture_pair.png", "a big red triangle above a small red cross"),
    ("image", "photo.jpg", "a landscape"),
    *[("music", f"tune_{name}.wav", f"a tune on the {name}") for name in ("flute", "piano", "trumpet")],
]


def write_manifest(path: Path, count: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in range(count):
            modality, name, text = CLIPS[row % len(CLIPS)]
            file.write(json.dumps({"text": text, modality: str(ROOT / "examples" / name)}) + "\n")


def measure(data: list[str], out: Path, workers: int, rows_per_shard: int, model: list[str]) -> dict:
    """One run of the script: its report."""
    command = [sys.executable, str(ROOT / "train" / "prepare_data.py"), *data, "--out", str(out), "--json", *model]
    command += ["--workers", str(workers), "--rows-per-shard", str(rows_per_shard), "--cut", "music"]
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": search}, capture_output=True, text=True)
    if run.returncode:
        raise ValueError(run.stderr.strip().splitlines()[-1])
    return json.loads(run.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=1120, help="source rows made of examples/ (default: 1120)")
    parser.add_argument("--rows-per-shard", type=int, default=28, help="size of a unit of work (default: 28)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--data", nargs="+", help="measure on these instead")
    parser.add_argument("--model", nargs=1, help="checkpoint (default: anygpt-tiny)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    results: dict[int, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or [str(Path(folder) / "examples.jsonl")]
        if not args.data:
            write_manifest(Path(data[0]), args.rows)
        first = None
        for turn in range(args.rounds):
            for workers in args.workers:
                out = Path(folder) / f"rows_{turn}_{workers}"
                try:
                    model = ["--model", *args.model] if args.model else []
                    report = measure(data, out, workers, args.rows_per_shard, model)
                except ValueError as error:
                    print(error, file=sys.stderr)
                    return 2
                made = rows.read_table(out)
                first = made if first is None else first
                report |= {
                    "same_rows": made == first,
                    "startup_seconds": report["seconds"] - report["working_seconds"],
                }
                report["rows_per_second"] = report["source_rows"] / report["working_seconds"]
                if workers not in results or report["rows_per_second"] > results[workers]["rows_per_second"]:
                    results[workers] = report
    single = results[min(results)]["rows_per_second"]
    print(f"{'workers':>7}  {'rows/s':>8}  {'tokens/s':>8}  {'speed-up':>8}  {'start-up, s':>11}  same rows")
    for workers, report in results.items():
        report["speed_up"] = report["rows_per_second"] / single
        tokens = report["tokens"] / report["working_seconds"]
        print(
            f"{workers:>7}  {report['rows_per_second']:>8.2f}  {tokens:>8.0f}  {report['speed_up']:>8.2f}  "
            f"{report['startup_seconds']:>11.1f}  {'yes' if report['same_rows'] else 'NO'}"
        )
    machine = {"cores": len(os.sched_getaffinity(0)), "machine": platform.machine(), "load": os.getloadavg()}
    if args.json:
        text = json.dumps(machine | {"data": args.data or "examples", "workers": results}, indent=1) + "\n"
        rows.write_whole(args.json, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return 0 if all(report["same_rows"] for report in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
