"""`cocot` with the FSDP that `accelerate launch` asks for, on CPUs, where accelerate itself does without.

torchrun --nproc_per_node 2 tests/fsdp_on_cpu.py train recipe.yaml
"""

import sys

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from cocot.cli import main


def _with_fsdp(state: AcceleratorState, *args, fsdp_plugin=None, **kwargs) -> None:
    begin(state, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        vars(state)["fsdp_plugin"] = fsdp_plugin
    if "fsdp_plugin" in vars(state):
        state.distributed_type = DistributedType.FSDP


if __name__ == "__main__":
    begin, AcceleratorState.__init__ = AcceleratorState.__init__, _with_fsdp
    sys.exit(main())
