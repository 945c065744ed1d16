"""The loader has a batch ready before it is asked for, and says how long it was waited for."""

import threading
import time

import torch

from spec import ranks
from spec.attention.to_device import tensors_of
from spec.training.batch import Batch, collate
from spec.training.loader import Copies, Loader
from spec.training.metrics import Window

STEPS = 6


class Rows:
    """Documents of eight tokens, each of which takes a while to read."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __getitem__(self, row: int):
        time.sleep(self.seconds)
        return [row] * 8, [1] * 8


def wait_share(monkeypatch, *, reading: float, working: float) -> float:
    """`data_wait_share` of a window of steps that work so long on rows that take so long to read."""
    loader = Loader(Rows(reading), [[row] for row in range(STEPS)], width=None, batch_size=1)
    window = Window(1, torch.device("cpu"))
    for _ in loader.epoch(0):
        time.sleep(working)
        spent = {"seconds": working, "cpu_seconds": 0.0, "waited": loader.waited}
        window.add(tokens=8, loss_tokens=8, lr=0.0, grad_norm=torch.zeros(()), **spent)
    monkeypatch.setattr(ranks, "total", lambda values: values)  # of one process without a group
    return window.flush(lambda loss_sum, count: 0.0)["data_wait_share"]


def test_a_step_waits_for_rows_that_take_longer_than_it(monkeypatch):
    assert 0.5 < wait_share(monkeypatch, reading=0.2, working=0.02) < 0.95


def test_rows_that_are_read_meanwhile_are_not_waited_for(monkeypatch):
    assert wait_share(monkeypatch, reading=0.02, working=0.2) < 0.1  # the first row is


class Streams:
    """What of CUDA the copies use, and in which order."""

    def __init__(self):
        self.said, self.on = [], "main"

    def Stream(self, device):  # noqa: N802  (torch's own name)
        return self

    def stream(self, stream):
        return self

    def __enter__(self):
        self.on = "side"

    def __exit__(self, *_):
        self.on = "main"

    def record_event(self):
        self.said.append(f"event on {self.on}")
        return "event"

    def current_stream(self, device):
        return self

    def wait_event(self, event):
        self.said.append(f"{self.on} waits for the {event}")


def test_batches_are_copied_on_a_stream_of_their_own_and_the_step_waits_for_them_on_the_gpu(monkeypatch):
    streams = Streams()
    for name in ("Stream", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(streams, name))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: streams.said.append("kept for main"))
    monkeypatch.setattr(Batch, "to", lambda batch, device: streams.said.append(f"copied on {streams.on}") or batch)
    copies = Copies(torch.device("cuda"))
    batch = collate([[([1, 2], [0, 1])]])
    batches, event = copies.begin([batch, batch])
    assert streams.said == ["copied on side", "copied on side", "event on side"]
    assert copies.end(batches, event) == batches
    assert streams.said[3] == "main waits for the event"
    assert streams.said[4:] == ["kept for main"] * 2 * len(tensors_of(batch))


def test_the_thread_that_copies_stays_on_its_own_rank_s_gpu(monkeypatch):
    """Where a thread begins is GPU 0: what it opened there would be a context of each rank of the node."""
    loader, said = Loader(Rows(0), [[0]], width=None, batch_size=1), []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    loader._copies = Copies(torch.device("cuda", 3))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: said.append((threading.current_thread().name, device)))
    monkeypatch.setattr(Copies, "begin", lambda self, batches: said.append(threading.current_thread().name) or (1, 2))
    monkeypatch.setattr(Copies, "end", lambda self, *item: item)
    assert list(loader.epoch(0)) == [(1, 2)]
    (thread, device), then = said
    assert device == torch.device("cuda", 3) and thread == then != threading.current_thread().name


def test_what_a_step_needs_to_know_is_made_ahead_of_it():
    asked = []
    loader = Loader(
        Rows(0), [[row] for row in range(3)], width=None, batch_size=1, attention_chunk=3,
        prepare=lambda batch, epoch: asked.append((batch.row_ids, epoch)) or "rows",
    )  # fmt: skip
    batches = [batch for (batch,) in loader.epoch(4)]
    assert {batch.rows for batch in batches} == {"rows"} and [epoch for _, epoch in asked] == [4, 4, 4]
    assert all(batch.documents.cut[3].lengths == (3, 3, 2) for batch in batches)
