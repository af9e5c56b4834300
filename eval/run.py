"""One table row, or all of them, as one command.

  python eval/run.py --task asr --model MODEL --data DATA --out RESULTS
  python eval/run.py --task all --protocols tiny --data data/speech --out out/eval \
      --model modeling_anygpt/pretrained/anygpt_tiny codec:modeling_anygpt/pretrained/anygpt_tiny original
  accelerate launch --num_processes 8 eval/run.py --task tts --model MODEL --data DATA --judges JUDGES --out RESULTS

A protocol (`eval/protocols/SET/TASK.yaml`, the paper's by default) says what is asked and how it is judged; DATA is
the folder that holds the data sets' folders, JUDGES that of the learned judges. `--model` takes several systems, among
them the codecs alone and deliberately broken models (`systems.py`). A run that was stopped goes on where it was, with
any number of processes; the same seed gives the same numbers. `report.py` shows the results.
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout too

import checkpoints  # noqa: E402
import judges  # noqa: E402
import protocol  # noqa: E402
import results  # noqa: E402
import systems  # noqa: E402
import tables  # noqa: E402
import torch  # noqa: E402
from accelerate import PartialState  # noqa: E402
from console import check_count, run_script  # noqa: E402
from tqdm import tqdm  # noqa: E402

import examples  # noqa: E402

BATCH = 32
LONGEST_WAIT = timedelta(days=1)  # of processes for the slowest


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--task", required=True, choices=[*protocol.TASKS, "all"])
    made.add_argument("--protocols", default="paper", metavar="SET", help="paper, tiny, or a folder of protocol files")
    made.add_argument("--model", required=True, nargs="+", metavar="[NAME=]SYSTEM", help="see eval/systems.py")
    made.add_argument("--data", required=True, type=Path)
    made.add_argument("--out", required=True, type=Path)
    made.add_argument("--judges", type=Path, help="folder of learned judges, ORG/NAME below it")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--batch", type=int, help=f"examples answered at once (default: the protocol's, or {BATCH})")
    made.add_argument("--limit", type=int, help="examples of each group, to try things out; noted as a deviation")
    dtypes = ("auto", "float32", "bfloat16", "float16")
    made.add_argument("--dtype", default="auto", choices=dtypes, help="of the language model (default: its own)")
    made.add_argument("--cpu", action="store_true", help="leave GPUs alone")
    made.add_argument("--again", action="store_true", help="forget what earlier runs have done")
    return made


def main(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    check_count("--limit", args.limit)
    check_count("--batch", args.batch)
    systems.check(args.model, args.out)
    chosen = protocol.choose(args.task, args.protocols)
    for each in chosen:  # before anything long: are all judges there, and all data?
        for name, revision in each.checkpoints.items():
            checkpoints.checkpoint(name, args.judges, revision)
    asked = {each.name: examples.fewer(examples.load(each, args.data), args.limit) for each in chosen}
    for each in chosen:  # and can the answers be scored, once they are all there?
        results.check_references(each, asked[each.name])
    media = {name: examples.media_hash(every) for name, every in asked.items()}
    state = PartialState(cpu=args.cpu or not torch.cuda.is_available(), timeout=LONGEST_WAIT)
    for words in args.model:
        system = systems.load(words, state.device, args.dtype)
        about = {"name": system.name, "kind": system.kind} | system.describe()
        fit = [each for each in chosen if system.handles(each, asked[each.name])]
        if not fit and state.is_main_process:
            print(f"{system.name}: nothing to do, {args.task} means nothing for this system", file=sys.stderr)
        for each in fit:
            evaluate(system, about, each, asked[each.name], media[each.name], args, state)
    if state.num_processes > 1:
        state.destroy_process_group()


def evaluate(
    system, about: dict, wanted: protocol.Protocol, every: list, media: str, args, state: PartialState
) -> None:
    """Answers and judges what of the examples (`media`: their hash) is still to do, then writes the result file."""
    began = time.time()
    size = args.batch or wanted.decoding.get("batch", BATCH)
    header = {"system": {k: v for k, v in about.items() if k != "name"}, "protocol": wanted.name, "hash": wanted.hash}
    header |= {"sample": examples.list_hash(every), "media": media, "seed": args.seed, "batch": size}
    header |= {"versions": results.versions()}
    header |= {"judges": checkpoints.identify(wanted, args.judges)}
    folder, task = args.out / system.name, wanted.name.replace("/", "_")
    key = results.key_of(header)
    if args.again and state.is_main_process:
        for path in folder.glob(f"{task}.{key}.*.jsonl"):
            path.unlink()
    state.wait_for_everyone()
    done = results.read_records(folder, task, key)
    state.wait_for_everyone()  # all share out the same rest: nobody adds to it before everybody has read it
    todo = [batch for batch in batches(wanted, every, size) if any(example.id not in done for example in batch)]
    mine = todo[state.process_index :: state.num_processes]
    if mine:
        work(system, wanted, every, mine, args, folder / f"{task}.{key}.{state.process_index}.jsonl", state)
    state.wait_for_everyone()
    if not state.is_main_process:
        return
    found = results.read_records(folder, task, key)
    records = [found[example.id] for example in every]
    options = {"judges": args.judges, "device": str(state.device)}
    rows = results.score(wanted, system.kind, every, records, folder, options)
    notes = {"date": time.strftime("%Y-%m-%d"), "seconds": round(time.time() - began, 1), "device": str(state.device)}
    notes |= {"processes": state.num_processes, "threads": torch.get_num_threads()}
    content = header | {"system": about, "key": key, "task": wanted.task, "about": wanted.about, "run": notes}
    content |= {"protocol": {"name": wanted.name, "hash": wanted.hash, "file": wanted.content}}
    deviations = [f"{args.limit} {tables.LIMITED}"] if args.limit else []
    deviations += checkpoints.deviations(wanted, header["judges"], header["versions"])
    content |= {"deviations": deviations}
    results.write_json(folder / f"{task}.json", content | {"rows": rows, "items": records})
    for row in rows:
        print(f"{system.name}: {row['name']}: {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]", flush=True)


def batches(wanted: protocol.Protocol, every: list, size: int) -> Iterator[list]:
    """Examples that ask for the same modalities, `size` at a time: the same ones in every run."""
    groups: dict = {}
    for example in every:
        groups.setdefault(systems.request_of(wanted, example), []).append(example)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def work(system, wanted: protocol.Protocol, every: list, todo: list, args, path: Path, state: PartialState) -> None:
    """Answers and judges the batches `todo`; each is in the file `path` before the next begins."""
    media = path.parent / "media" / path.name.rsplit(".", 2)[0]  # another run (KEY) has another folder
    system.prepare(wanted, every)
    place = {example.id: index for index, example in enumerate(every)}
    model = getattr(system, "model", None)
    data = args.data / wanted.data.get("folder", ".")
    asked = [spec for spec in wanted.judges if system.kind in spec.get("systems", protocol.SYSTEM_KINDS)]
    panel = [(spec, judges.build(spec, data, args.judges, model, str(state.device))) for spec in asked]
    total = sum(map(len, todo))
    bar = tqdm(total=total, desc=f"{system.name} {wanted.name}", unit=" items", disable=not state.is_main_process)
    for batch in todo:
        seed = int.from_bytes(hashlib.sha256(f"{args.seed} {wanted.name} {batch[0].id}".encode()).digest()[:4], "big")
        outputs = system.answer(wanted, batch, seed)
        judged: list[dict] = [{} for _ in batch]
        for spec, judge in panel:
            chosen = [
                i for i, example in enumerate(batch)
                if spec.get("group") in (None, example.group) and place[example.id] % spec.get("every", 1) == 0
            ]  # fmt: skip
            if chosen:
                found = judge([batch[i] for i in chosen], [outputs[i] for i in chosen])
                for i, fields in zip(chosen, found, strict=True):
                    judged[i] |= {k: round(v, 6) if isinstance(v, float) else v for k, v in fields.items()}
        records = []
        for example, output, fields in zip(batch, outputs, judged, strict=True):
            stem = media / quote(example.id, safe=" ")
            record = {"id": example.id, "group": example.group, "texts": list(example.texts), "text": output.text}
            record |= {"transcript": output.transcript, "medium": results.save_medium(output.medium, stem)}
            record |= {"problem": output.problem, "judged": fields}
            records.append(record)
        results.append(path, records)
        bar.update(len(batch))
    bar.close()


if __name__ == "__main__":
    run_script(main)
