"""Checkpoints: a training run put aside to go on bit-equal, a file a cell in a hidden folder beside the results.

    .checkpoints/<cell_id>.pt    sha256 of what follows (32 bytes), then numbers, strings, tensors as torch saves them

A file is published whole or not at all. It is taken up only if its checksum is right and if it was made for the same
cell by the same sources, torch, processor, threads, kernel and text: others may round otherwise, and that run would be
neither's.

torch is imported inside the functions: a run that has nothing to do should end at once.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from bench.cells import TrainCell
from bench.measuring.machine import processor, source_hash
from bench.storing.parquet import clear_strays, publish
from kernels.system.cache import read as regular
from kernels.system.resources import in_words

FORMAT = "training checkpoint 1"
FOLDER = ".checkpoints"
SECONDS = 60.0
DIGEST_BYTES = 32
SHARE = 0.1  # of the time since the last checkpoint that another one at the end of an epoch may cost
CONTINUED = (
    "timeout",
    "crashed",
    "out_of_memory",
    "failed",
)  # endings that a retry goes on from, where a checkpoint was left

END_OF_SESSION = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []

State = dict[str, Any]
Batch = TypeVar("Batch")
Stopped = Callable[[], AbstractContextManager[None]]


class Part(Protocol):
    """A part of a run that says what it holds and takes that back, as torch's modules and optimizers do."""

    def state_dict(self) -> State: ...
    def load_state_dict(self, state: State) -> Any: ...


class Attributes:
    """Some attributes of an object as a part."""

    def __init__(self, owner: object, *names: str) -> None:
        self.owner, self.names = owner, names

    def state_dict(self) -> State:
        return {name: getattr(self.owner, name) for name in self.names}

    def load_state_dict(self, state: State) -> None:
        for name in self.names:
            setattr(self.owner, name, state[name])


class GlobalRandom:
    """torch's generators as a part, of the CPU and of a GPU that is used: dropout draws from them.

    Nothing in a run draws from Python's or numpy's.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def state_dict(self) -> State:
        import torch

        state = {"torch": torch.get_rng_state()}
        return state | ({"cuda": torch.cuda.get_rng_state()} if self.device == "cuda" else {})

    def load_state_dict(self, state: State) -> None:
        import torch

        torch.set_rng_state(state["torch"])
        if self.device == "cuda":
            torch.cuda.set_rng_state(state["cuda"])


@dataclass(frozen=True)
class Checkpoints:
    """Where the checkpoints of a sweep's cells lie, and how often one is written.

    seconds: between two of a cell. largest: bytes; a larger checkpoint is not kept. 0: any is.
    """

    folder: Path
    seconds: float = SECONDS
    largest: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder).absolute())  # a worker may be elsewhere

    def path(self, cell_id: str) -> Path:
        return self.folder / f"{cell_id}.pt"

    def discard(self, cell_ids: Iterable[str]) -> None:
        """Remove the checkpoints of cells."""
        for cell_id in cell_ids:
            self.path(cell_id).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what a kill has left half written, and the folder where nothing is left in it.

        To be called when no cell runs.
        """
        with suppress(OSError):
            clear_strays(self.folder)
            self.folder.rmdir()


class Keeper:
    """Puts one run aside from time to time, and finds it again; with `checkpoints` None it only counts.

    windows: batches of the running epoch that are done. resumed: how often the run was taken up again. earlier_seconds:
    wall time of the pieces before this one, each up to its last checkpoint.
    """

    def __init__(self, checkpoints: Checkpoints | None, cell: TrainCell, **more: str) -> None:
        """more: whatever else two runs must have in common for one to go on with the other."""
        self.checkpoints = checkpoints
        self.windows = self.resumed = 0
        self.earlier_seconds = self.cost = 0.0
        self.began = self.saved = time.monotonic()
        self.asked = self.refused = False
        if checkpoints is not None:
            self.path = checkpoints.path(cell.cell_id)
            self.made_for = surroundings(cell) | more

    def state_dict(self) -> State:
        seconds = self.earlier_seconds + time.monotonic() - self.began
        return {"windows": self.windows, "resumed": self.resumed, "seconds": seconds}

    def load_state_dict(self, state: State) -> None:
        self.windows, self.resumed, self.earlier_seconds = state["windows"], state["resumed"] + 1, state["seconds"]

    def columns(self) -> dict[str, Any]:
        """The columns of a row that say how its run was put together."""
        return {"resumed": self.resumed, "earlier_seconds": self.earlier_seconds}

    def find(self) -> State | None:
        """What is to be gone on from; None, and a line on standard error, where that is not to be trusted."""
        if self.checkpoints is None:
            return None
        try:
            return read(self.path, self.made_for)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as problem:
            print(f"checkpoint not used, training starts anew: {problem}", file=sys.stderr, flush=True)
            return None

    def left(self, batches: Iterable[Batch], state: Callable[[], State], stopped: Stopped) -> Iterator[Batch]:
        """The batches of the epoch that are not done yet; after each of them the run may be put aside.

        state: what there is to put aside. stopped: entered meanwhile. SIGTERM and SIGHUP end the process once the batch
        is done and put aside.
        """
        if self.checkpoints is None:
            yield from batches
            return
        with self._asked_by_signals():
            for batch in islice(batches, self.windows, None):
                yield batch
                self.windows += 1
                if self.asked or time.monotonic() - self.saved >= self.checkpoints.seconds:
                    with stopped():
                        self._put_aside(state())
            if time.monotonic() - self.saved >= self.cost / SHARE:
                with stopped():
                    self._put_aside(state())

    def _put_aside(self, state: State) -> None:
        """Write a checkpoint; one that cannot be is lost, the run not, and the first time a line says so."""
        assert self.checkpoints is not None
        began, again = time.monotonic(), True
        try:
            write(self.path, self.made_for, state, self.checkpoints.largest)
        except (OSError, ValueError, MemoryError, RuntimeError) as problem:  # torch's lack of memory is a RuntimeError
            if not self.refused:
                print(f"no checkpoint: {in_words(problem)}", file=sys.stderr, flush=True)
            self.refused, again = True, not isinstance(problem, ValueError)
        if self.asked:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        self.cost = time.monotonic() - began
        self.saved = time.monotonic() if again else math.inf

    @contextmanager
    def _asked_by_signals(self) -> Iterator[None]:
        """Inside, SIGTERM and SIGHUP, where that is not ignored, only ask."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only there signals are handled
            return

        def ask(*_: object) -> None:
            self.asked = True

        asking = [signal.SIGTERM, *(each for each in END_OF_SESSION if signal.getsignal(each) != signal.SIG_IGN)]
        before = {number: signal.signal(number, ask) for number in asking}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def surroundings(cell: TrainCell) -> dict[str, str]:
    """What a run's last digits depend on."""
    import torch

    gpu = {"gpu": torch.cuda.get_device_name()} if cell.device == "cuda" else {}
    return gpu | {
        "format": FORMAT,
        "cell": cell.cell_id,
        "sources": source_hash(),
        "torch": str(torch.__version__),
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
    }


def write(path: Path, made_for: Mapping[str, str], state: State, largest: int = 0) -> None:
    """Publish a checkpoint. ValueError beyond `largest` bytes (0: any number); OSError leaves the old one."""
    import torch

    buffer = io.BytesIO()
    torch.save({"made_for": dict(made_for), "state": state}, buffer)
    data = buffer.getvalue()
    if 0 < largest < len(data):
        raise ValueError(f"{path.name} would have {len(data) / 2**20:.0f} MiB; kept are up to {largest / 2**20:g} MiB")
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, hashlib.sha256(data).digest() + data)


def whole(path: Path) -> bool:
    """Whether the bytes of a checkpoint are those that were written, for whatever it was made."""
    try:
        content = regular(path, own=False)
    except (OSError, ValueError):
        return False
    return hashlib.sha256(content[DIGEST_BYTES:]).digest() == content[:DIGEST_BYTES]


def read(path: Path, made_for: Mapping[str, str]) -> State:
    """What was written; ValueError, one line, where it is not whole or was made for anything else."""
    import torch

    content = regular(path, own=False)
    digest, data = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(data).digest() != digest:
        raise ValueError(f"{path} is damaged: its sha256 is not the one at its beginning")
    try:
        found = torch.load(io.BytesIO(data), weights_only=True)
        assert isinstance(found["made_for"], dict) and isinstance(found["state"], dict)
    except Exception as error:
        raise ValueError(f"{path} is no checkpoint: {type(error).__name__}") from None
    for name, wanted in made_for.items():
        if (other := found["made_for"].get(name)) != wanted:
            raise ValueError(f"{path} was made with another {name}: {other}, here {wanted}")
    state: State = found["state"]
    return state
