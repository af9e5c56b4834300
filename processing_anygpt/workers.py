"""Who makes the shards of train/prepare_data.py: this process, or actors of Ray on this machine or a cluster."""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from . import preparation, rows, sources

SHARED_MEMORY = 100_000_000  # bytes that a local Ray reserves; the results passed through it are a few numbers each
RAY_OPTIONS = {  # it reads them when it is imported
    "RAY_USAGE_STATS_ENABLED": "0",  # it would report home
    "RAY_gcs_server_port_wait_time_s": "300",  # a busy machine takes longer than the usual 30 s
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # as an error, it tells of what Ray Data itself does (ray-project/ray 53727)
}


@dataclass(frozen=True)
class Job:
    """What every worker is told.

    Args:
        checkpoint: folder or hub id.
        out: folder of the rows.
        device: of the codecs, "cpu" or "cuda".
    """

    checkpoint: str
    settings: preparation.Settings
    out: Path
    device: str


class UnitMaker:
    """Makes shards; an actor of Ray, or used as it is. Ray asks for batches: one here is one unit."""

    def __init__(self, job: Job):
        self.job = job
        self.processor: Any = None

    def __call__(self, batch: dict[str, Sequence]) -> dict[str, list]:
        """{"index", "unit": JSON} -> {"index", "start", "end": Unix times, "worker": its name, "error": "" or why
        there is no shard}."""
        index, start, error = int(batch["index"][0]), time.time(), ""
        try:
            if self.processor is None:
                self.load()
                start = time.time()
            self.make(index, json.loads(batch["unit"][0]))
        except (ValueError, OSError, ImportError) as problem:  # as a value: Ray would wrap it in pages of its own
            error = str(problem)
        worker = f"{socket.gethostname()}:{os.getpid()}"
        return {"index": [index], "start": [start], "end": [time.time()], "worker": [worker], "error": [error]}

    def load(self) -> None:
        transformers_logging.disable_progress_bar()
        if self.job.device == "cpu":
            torch.set_num_threads(1)  # a worker for each core; and the same sums whatever the number of cores
        self.processor = preparation.load_checkpoint(self.job.checkpoint)[1].to(self.job.device)

    def make(self, index: int, unit: sources.Unit) -> None:
        """Writes the shard of unit number `index`."""
        folder = "." if unit["kind"] == "hf" else unit["root"]
        made, rejects = preparation.prepare(sources.read(unit), folder, self.processor, self.job.settings)
        names = [spec.name for spec in self.processor.specs]
        rows.write_shard(self.job.out / rows.shard_name(index), made, rejects, names)


def make_shards(
    job: Job,
    units: Sequence[sources.Unit],
    todo: Sequence[int],
    workers: int | None = None,
    gpus_per_worker: float = 0.0,
    address: str | None = None,
) -> Iterator[tuple[int, float, float, str]]:
    """Makes the shards of the units numbered in `todo`; (unit, start, end, worker) of each as it is done, Unix times.

    Args:
        workers: processes; 0: this one, without Ray. None: one for each core of this machine, or of the cluster.
        gpus_per_worker: share of a GPU.
        address: of a Ray cluster; None: this machine.

    Raises:
        ValueError: what a worker met: a codec that is missing, a full disk, ...
    """
    check_gpus(gpus_per_worker, workers, address)
    items = [{"index": index, "unit": json.dumps(units[index])} for index in todo]
    if not items:
        return
    results = _here(job, items) if workers == 0 else _with_ray(job, items, workers, gpus_per_worker, address)
    for result in results:
        if result["error"]:
            raise ValueError(result["error"])
        yield result["index"], result["start"], result["end"], result["worker"]


def check_gpus(gpus_per_worker: float, workers: int | None, address: str | None) -> None:
    """ValueError if this machine lacks the GPUs that are asked for: Ray would wait for them to come."""
    there = torch.cuda.device_count()
    if address is None and gpus_per_worker * max(workers or 1, 1) > there:
        raise ValueError(
            f"Got {gpus_per_worker:g} GPUs for each of {workers or 1} workers, but torch sees {there}. Use fewer "
            "workers, or leave --gpus-per-worker out to encode on the CPU."
        )


def _here(job: Job, items: list[dict]) -> Iterator[dict]:
    make = UnitMaker(job)
    for item in items:
        result = make({key: [value] for key, value in item.items()})
        yield {key: value[0] for key, value in result.items()}


def _with_ray(job: Job, items: list[dict], workers: int | None, gpus: float, address: str | None) -> Iterator[dict]:
    for name, value in RAY_OPTIONS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(f"{error}. Install it (pip install -e '.[train]'), or use no workers (0).") from error
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        workers = workers or (int(torch.cuda.device_count() / gpus) if gpus else len(os.sched_getaffinity(0)))
        # One more than workers, for what else Ray Data may want to place.
        local = {"num_cpus": workers + 1, "include_dashboard": False, "object_store_memory": SHARED_MEMORY}
        _start(ray, "local", local | quiet)
    else:
        _start(ray, address, quiet)
        there = ray.cluster_resources()
        workers = workers or int(there.get("GPU", 0) / gpus if gpus else there.get("CPU", 1)) or 1
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        actors = ray.data.ActorPoolStrategy(size=min(workers, len(items)), max_tasks_in_flight_per_actor=2)
        data = ray.data.from_items(items, override_num_blocks=len(items))
        made = data.map_batches(
            UnitMaker, fn_constructor_args=(job,), batch_size=1, compute=actors, num_cpus=1, num_gpus=gpus
        )
        yield from made.iter_rows()
    finally:
        ray.shutdown()


def _start(ray: Any, address: str, options: dict) -> None:
    """Connects to a cluster, or starts one. Ray gives its processes 30 s, too few on a busy machine: three tries."""
    for tries_left in (2, 1, 0):
        try:
            ray.init(address, **options)
            return
        except Exception as error:  # that is the class it raises
            ray.shutdown()
            if not tries_left:
                raise ValueError(f"Ray doesn't start: {error} Without it: --workers 0.") from error
