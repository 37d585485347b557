"""Several processes at one task (torchrun): who does what, and how the parts come together.

Work is cut into units that do not depend on the number of processes. `each` shares them out and gives every process all
results in order, so that any number of processes ends with the same bits. Without `started`, and inside `alone`, there is one
process, and everything here is a plain call.

A process that dies takes its connections along: the others raise RankLost at their next exchange, or when torchrun ends them.
An error in a shared step is raised by all processes alike; `of_all_ranks` is then true of it, so that one of them may say it
for all.
"""

import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import UserError

T, Unit = TypeVar("T"), TypeVar("Unit")

PATIENCE = timedelta(days=30)
"""How long one waits for another: a unit may take long, and a process that is dead is noticed at once."""

_together = False
_on_devices = False
"""Whether tensors can travel from device to device (nccl)."""
_store: dist.Store | None = None


class RankLost(UserError):
    """Another process of the run is gone."""

    def __init__(self, message: str = "another process of this run has died; what is finished is kept, start again to go on"):
        super().__init__(message)


def rank() -> int:
    """Number of this process among those that work together, from 0."""
    return dist.get_rank() if _together else 0


def world_size() -> int:
    """How many work together."""
    return dist.get_world_size() if _together else 1


def process() -> int:
    """Number of this process, also where it works alone, as torchrun tells it; 0 without torchrun."""
    return _from_environment("RANK", 0)


def processes() -> int:
    """How many torchrun has started; 1 without it."""
    return _from_environment("WORLD_SIZE", 1)


def local_process() -> int:
    """Number of this process on its machine."""
    return _from_environment("LOCAL_RANK", 0)


def _from_environment(name: str, usual: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else usual


def check_environment() -> None:
    """Raises UserError where a part of what torchrun sets is there and the rest is not."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return
    wrong = [name for name in ("WORLD_SIZE", "RANK", "MASTER_PORT") if not os.environ.get(name, "").isdecimal()]
    wrong += ["MASTER_ADDR"] * (not os.environ.get("MASTER_ADDR"))
    if wrong:
        raise UserError(f"WORLD_SIZE is in the environment, and {wrong[0]} is {os.environ.get(wrong[0]) or 'not set'}: start "
                        "several processes with torchrun, and one with WORLD_SIZE unset")


@contextmanager
def started() -> Iterator[None]:
    """Inside, the processes that torchrun has started work together; without torchrun nothing is different."""
    global _together, _on_devices, _store
    if processes() == 1:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_process() % torch.cuda.device_count())
        if torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", 1)) and dist.is_nccl_available():
            backend, _on_devices = "cpu:gloo,cuda:nccl", True  # nccl refuses two processes on one device
    dist.init_process_group(backend, timeout=PATIENCE)
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    _store = dist.TCPStore(*address, is_master=False, timeout=timedelta(seconds=30))
    before = signal.signal(signal.SIGTERM, _told_to_end)
    _together = True
    try:
        yield
        barrier()
    finally:
        _together = False
        signal.signal(signal.SIGTERM, before)
    dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Inside, each process works by itself."""
    global _together
    before, _together = _together, False
    try:
        yield
    finally:
        _together = before


def each(function: Callable[[Unit], T], units: Sequence[Unit]) -> list[T]:
    """[function(unit) for unit in units], every process doing its share, alone. Units must be the same in all processes.

    Of several processes tensors in the results (in lists, tuples and dicts) arrive on the CPU.
    """
    if world_size() == 1:
        return [function(unit) for unit in units]
    own_results, error, count = [], None, world_size()
    own_units = units[rank()::count]
    with alone():
        try:
            own_results = [function(unit) for unit in own_units]
        except Exception as caught:
            error = caught
    answers = _exchanged((len(units), _on_cpu(own_results)), error)
    if len({number for number, _ in answers}) > 1:
        raise UserError("the processes of this run see different work: give all of them the same machine, data and flags")
    return [answers[i % count][1][i // count] for i in range(len(units))]


def from_first(function: Callable[[], T]) -> T:
    """What `function` returns in the first process, which alone calls it, alone; in every process."""
    if world_size() == 1:
        return function()
    result, error = None, None
    if rank() == 0:
        with alone():
            try:
                result = function()
            except Exception as caught:
                error = caught
    box = [(result, _portable(error))]
    with _connected():
        dist.broadcast_object_list(box, src=0)
    if box[0][1] is not None:
        raise _marked(error or box[0][1])
    return box[0][0]


def in_turn(function: Callable[[], T]) -> T:
    """`function()` in the first process, then in all others: what the first leaves on disk the others find. Each alone.

    An error in any is raised in all.
    """
    if world_size() == 1:
        return function()
    result, error = None, None
    for turn in (True, False):
        if (rank() == 0) is turn:
            with alone():
                try:
                    result = function()
                except Exception as caught:
                    error = caught
        _exchanged(None, error)
    return result


def same(value: T) -> T:
    """The first process's value, in every process: where results could differ in their last bits."""
    return from_first(lambda: value)


def barrier() -> None:
    """Waits until all have come here."""
    if world_size() > 1:
        _exchanged(None, None)


def add_in_order(totals: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
    """totals += the parts of process 0, += those of process 1, ...: in the first process alone; parts are used up."""
    for source in range(world_size()):
        with _connected():
            for total, part in zip(totals, parts):
                if source and rank() in (0, source):
                    part = part if _on_devices else part.cpu()  # gloo sends from memory, nccl from the device
                    if rank() == source:
                        dist.send(part, 0)
                    else:
                        dist.recv(part, source)
                if rank() == 0:
                    total += part.to(total.device)


def first_to_say() -> bool:
    """Whether this process is the one to print an error that all have."""
    try:
        return _store is None or _store.add("said", 1) == 1
    except RuntimeError:  # whoever kept the count is gone
        return True


def _exchanged(value: T, error: Exception | None) -> list[T]:
    """The values of all processes; if any has an error, all raise the first one (each its own, if it has one)."""
    answers: list[Any] = [None] * world_size()
    with _connected():
        dist.all_gather_object(answers, (value, _portable(error)))
    first = next((other for _, other in answers if other is not None), None)
    if first is not None:
        raise _marked(first if error is None or isinstance(error, UserError) else error)
    return [value for value, _ in answers]


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(part) for key, part in value.items()}
    return type(value)(map(_on_cpu, value)) if isinstance(value, (list, tuple)) else value


def _portable(error: Exception | None) -> Exception | None:
    """The error itself if it can travel, else one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _marked(error: Exception) -> Exception:
    error.of_all_ranks = True
    return error


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise _marked(RankLost()) from error


def _told_to_end(number, frame):
    """torchrun ends the others when one has failed."""
    raise _marked(RankLost())
