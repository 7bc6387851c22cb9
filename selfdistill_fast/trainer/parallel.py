"""The operations that a fit needs across processes, by torch.distributed.

Every process holds the whole data set and computes its share of each batch; DDP averages the
gradients. Only process 0 writes files.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["World", "join"]


@dataclass(frozen=True)
class World:
    """This process among ``size`` processes; with only one, every method is the identity."""

    rank: int = 0
    size: int = 1

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def first(self, work: Callable[[], Any]) -> Any:
        """Return or raise, in every process, the outcome of ``work`` in process 0."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = work()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def same_buffers(self, model: torch.nn.Module) -> None:
        """Give every process the buffers (running statistics) of process 0."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def rows(self, n: int) -> torch.Tensor:
        """Row numbers, from 0..n − 1, that this process evaluates; equally many in each."""
        count = -(-n // self.size)
        return torch.arange(self.rank * count, (self.rank + 1) * count).clamp_(max=n - 1)

    def gather(self, rows: torch.Tensor, n: int) -> torch.Tensor:
        """All n rows, (n, p), from each process's :meth:`rows`."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)[:n]


def join() -> World:
    """The process group: an existing one, or the one that ``torchrun`` requests, or none."""
    if not dist.is_available():
        return World()
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
            return World()
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            backend = "nccl"
        dist.init_process_group(backend)
        atexit.register(_leave)
    return World(dist.get_rank(), dist.get_world_size())


def _leave() -> None:
    """Leave the group together, after releasing everything that refers to it.

    Otherwise a thread of torch occasionally aborts the exit of a process that has finished its
    work.
    """
    if dist.is_initialized():
        if not hasattr(sys, "last_value"):  # no exception has ended this process
            with contextlib.suppress(RuntimeError):  # one has ended another
                dist.barrier()
        dist.destroy_process_group()
        gc.collect()
