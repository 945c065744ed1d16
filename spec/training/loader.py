"""Which rows each rank trains on, in which order, and the thread that has them ready before they are asked for.

The order of the bins follows from the seed and the epoch alone, and an optimizer step takes the next
`batch_size * accumulation * ranks` of them. So runs that differ in ranks but not in that product see the same rows at
the same step, and a run resumed on other ranks goes on with the first bin that was not trained on.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from spec.attention.to_device import tensors_of
from spec.samples.packing import epoch_order
from spec.training.batch import Batch, collate

Prepare = Callable[[Batch, int | None], Any]  # of an epoch; None: of evaluation


class Rows(Protocol):
    """Tokenised documents: `rows[i]` is (token ids, loss mask), both `[length]`."""

    def __getitem__(self, index: int) -> tuple[Any, Any]: ...


class Loader:
    """Hands this rank its batches, an optimizer step at a time."""

    def __init__(
        self,
        rows: Rows,
        bins: Sequence[Sequence[int]],
        *,
        width: int | None,
        batch_size: int,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        row_ids: Sequence[int] | np.ndarray | None = None,
        device: torch.device | str = "cpu",
        prepare: Prepare | None = None,
        attention_chunk: int | None = None,
    ):
        """`bins`: the rows (by index) packed into each row of a batch; `width`: T, or None for the fullest bin's.

        `row_ids`: what each row is known by, however it is prepared (default: its index). What a step needs to know of
        a batch is made here, on the host, while the step before runs: what `prepare` makes of it in the epoch becomes
        its `rows`, and its documents are cut every `attention_chunk` tokens, where a target's layers attend so.
        """
        self.rows, self.bins, self.width = rows, bins, width
        self.batch_size, self.accumulation, self.rank, self.world = batch_size, accumulation, rank, world
        self.seed, self.shuffle, self.device = seed, shuffle, torch.device(device)
        self.prepare, self.attention_chunk = prepare, attention_chunk
        self._copies = Copies(self.device) if self.device.type == "cuda" else None
        self.row_ids = row_ids if row_ids is not None else range(max(map(max, bins), default=-1) + 1)
        self.waited = 0.0  # seconds that the consumer has waited for data so far

    @property
    def bins_a_step(self) -> int:
        return self.batch_size * self.accumulation * self.world

    def steps_from(self, bins_done: int) -> int:
        """Optimizer steps left in an epoch of which `bins_done` bins are trained on."""
        return -(-(len(self.bins) - bins_done) // self.bins_a_step)

    def epoch(self, epoch: int, bins_done: int = 0) -> Iterator[list[Batch]]:
        """For each optimizer step of what is left of `epoch`, this rank's batches, one for each accumulation.

        Every rank gets the same number of steps. Where the last step has too few bins for all, some ranks get batches
        that bear no loss. At most three steps' batches wait, in pinned memory where they go to a GPU.
        """
        ready: queue.Queue[Any] = queue.Queue(maxsize=2)
        stop = threading.Event()
        worker = threading.Thread(target=self._prepare, args=(epoch, bins_done, ready, stop), daemon=True)
        worker.start()
        try:
            while True:
                began = time.perf_counter()
                item = ready.get()
                self.waited += time.perf_counter() - began
                if item is None:
                    return
                if isinstance(item, Exception):
                    raise item
                yield self._copies.end(*item) if self._copies else item
        finally:
            stop.set()
            while worker.is_alive():  # it may be waiting to hand something over
                _drain(ready)
                worker.join(timeout=0.05)

    def _prepare(self, epoch: int, bins_done: int, ready: queue.Queue, stop: threading.Event) -> None:
        try:
            if self._copies:
                self._copies.join()
            order = self._order(epoch)[bins_done:]
            for start in range(0, len(order), self.bins_a_step):
                batches = self._step(order[start : start + self.bins_a_step], epoch)
                ready.put(self._copies.begin(batches) if self._copies else batches)
                if stop.is_set():
                    return
            ready.put(None)
        except Exception as error:  # handed to the consumer, whose stack it belongs to
            ready.put(error)

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.bins))
        return epoch_order(len(self.bins), seed=self.seed, epoch=epoch)

    def _step(self, bins: np.ndarray, epoch: int) -> list[Batch]:
        """The bins of one optimizer step, dealt out so that all ranks' first batches come before their second ones."""
        batches = []
        for turn in range(self.accumulation):
            start = (turn * self.world + self.rank) * self.batch_size
            batches.append(self._batch(bins[start : start + self.batch_size], epoch))
        return batches

    def _batch(self, bins: np.ndarray, epoch: int) -> Batch:
        ids = [int(self.row_ids[row]) for index in bins for row in self.bins[index]]
        documents = [[self.rows[row] for row in self.bins[index]] for index in bins]
        batch = collate(documents, self.width, ids) if documents else collate([[_NOTHING]], self.width)
        if self.attention_chunk:
            batch.documents.chunked(self.attention_chunk)
        return replace(batch, rows=self.prepare(batch, epoch)) if self.prepare else batch


class Copies:
    """Brings batches to a GPU on a stream of their own, so that they pass while a step computes."""

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def join(self) -> None:
        """First of all on the loader's thread: it begins at the first GPU, and a stream that it entered from there
        would open a context on it, of half a GiB for each other rank of the node (pytorch #58626)."""
        torch.cuda.set_device(self.device)

    def begin(self, batches: list[Batch]) -> tuple[list[Batch], torch.cuda.Event]:
        """On the loader's thread: the batches as they will be, and the event after which they are."""
        with torch.cuda.stream(self.stream):
            there = [batch.to(self.device) for batch in batches]
            return there, self.stream.record_event()

    def end(self, batches: list[Batch], there: torch.cuda.Event) -> list[Batch]:
        """On the consumer's thread: whatever it runs from now on waits for the batches, on the GPU, not on the host."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(there)
        for batch in batches:
            for tensor in tensors_of(batch):
                tensor.record_stream(current)  # else its memory goes to a next copy before the step has read it
        return batches


_NOTHING = ([0, 0], [0, 0])  # a document that bears no loss, for a rank that has run out of bins


def _drain(ready: queue.Queue) -> None:
    try:
        while True:
            ready.get_nowait()
    except queue.Empty:
        pass
