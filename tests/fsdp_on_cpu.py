"""Runs a training script under FSDP2 on CPU processes: accelerate offers FSDP on accelerators only.

accelerate launch --config_file train/configs/accelerate_fsdp2.yaml --num_processes 2 tests/fsdp_on_cpu.py SCRIPT ...
"""

import runpy
import sys
from pathlib import Path

from accelerate.state import PartialState
from accelerate.utils import DistributedType

initialise = PartialState.__init__


def as_if_on_gpus(self, *arguments, **options):
    """The processes talk by gloo and compute on the CPU, but count as devices that may shard."""
    initialise(self, *arguments, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


if __name__ == "__main__":
    PartialState.__init__ = as_if_on_gpus
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
