"""Rows a second of train/prepare_data.py against the number of workers: python benchmarks/prepare.py --workers 1 2

Encodes the recordings, pictures and tunes of examples/ with the codecs of anygpt-tiny, over and over, always from the
file; or, with --data, any input that prepare_data takes. Every number of workers makes all the rows, in a run of its
own, --rounds times in turn (the best counts); the rows have to be the same. Each run is held to as many cores as it
has workers, so that a single worker shares its core with Ray and the driver, as two share theirs (--unpinned leaves
all cores to all runs: one worker then has the second core for its driver, and looks faster).

Rows a second are those of the steady state: from when the last worker has begun its first unit until the first worker
has ended its last. The start of Ray, loading the codecs and the end, where a worker may wait for the other, are left
out; "in all" counts them. Prints a table, and JSON with --json FILE. Wants a machine with nothing else to do.
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
from processing_anygpt.files import write_text

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


def steady(spans: list[tuple[int, float, float, str]]) -> tuple[float, float]:
    """Rows and seconds in which all workers worked; a unit that is partly outside counts in part.

    Args:
        spans: (rows, start, end, worker) of each unit, Unix times.
    """
    workers = {worker for *_, worker in spans}
    begin = max(min(start for _, start, _, w in spans if w == worker) for worker in workers)
    end = min(max(stop for _, _, stop, w in spans if w == worker) for worker in workers)
    inside = [
        (count, max(0.0, min(stop, end) - max(start, begin)) / (stop - start)) for count, start, stop, _ in spans
    ]
    return sum(count * share for count, share in inside), end - begin


def measure(
    data: list[str], out: Path, workers: int, rows_per_shard: int, model: list[str], cores: list[int] | None
) -> dict:
    """One run of the script, on these cores: its report, with rows a second."""
    command = [sys.executable, str(ROOT / "train" / "prepare_data.py"), *data, "--out", str(out), "--json", *model]
    command += ["--workers", str(workers), "--rows-per-shard", str(rows_per_shard), "--cut", "music"]
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if cores is not None:
        command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": search}, capture_output=True, text=True)
    if run.returncode:
        raise ValueError((run.stderr.strip().splitlines() or [f"prepare_data.py ended with {run.returncode}"])[-1])
    report = json.loads(run.stdout.splitlines()[-1])
    spans = report.pop("spans")
    count, seconds = steady(spans)
    if len({worker for *_, worker in spans}) != max(workers, 1) or seconds < report["seconds"] / 4:
        raise ValueError(f"{workers} workers worked together for {seconds:.0f} s only. Give more --rows.")
    return report | {"steady_seconds": seconds, "rows_per_second": count / seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=2240, help="source rows made of examples/ (default: 2240)")
    parser.add_argument("--rows-per-shard", type=int, default=28, help="size of a unit of work (default: 28)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--unpinned", action="store_true", help="all cores for every run")
    parser.add_argument("--data", nargs="+", help="measure on these instead")
    parser.add_argument("--model", nargs=1, help="checkpoint (default: anygpt-tiny)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.rounds < 1 or args.rows < 1:
        parser.error(f"got {args.rounds} rounds of {args.rows} rows, allowed are 1 and more")
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
                    there = sorted(os.sched_getaffinity(0))
                    cores = None if args.unpinned else there[: max(workers, 1)]
                    report = measure(data, out, workers, args.rows_per_shard, model, cores)
                except (ValueError, OSError) as error:  # OSError: no taskset
                    print(f"prepare.py: error: {error}", file=sys.stderr)
                    return 2
                made = rows.read_table(out)
                first = made if first is None else first
                report["same_rows"] = made == first
                if workers not in results or report["rows_per_second"] > results[workers]["rows_per_second"]:
                    results[workers] = report
    single = results[min(results)]["rows_per_second"]
    columns = (("workers", 7), ("rows/s", 8), ("tokens/s", 8), ("speed-up", 8), ("steady, s", 9), ("in all, s", 9))
    print(*(f"{name:>{width}}" for name, width in columns), "same rows", sep="  ")
    for workers, report in results.items():
        report["speed_up"] = report["rows_per_second"] / single
        tokens = report["tokens"] / report["source_rows"] * report["rows_per_second"]
        print(
            f"{workers:>7}  {report['rows_per_second']:>8.2f}  {tokens:>8.0f}  {report['speed_up']:>8.2f}  "
            f"{report['steady_seconds']:>9.1f}  {report['seconds']:>9.1f}  {'yes' if report['same_rows'] else 'NO'}"
        )
    machine = {"cores": len(os.sched_getaffinity(0)), "machine": platform.machine(), "load": os.getloadavg()}
    if args.json:
        text = json.dumps(machine | {"data": args.data or "examples", "workers": results}, indent=1) + "\n"
        write_text(args.json, text)
    return 0 if all(report["same_rows"] for report in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
