"""The loader has a batch ready before it is asked for, and says how long it was waited for."""

import time

import torch

from spec import ranks
from spec.training.loader import Loader
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
        spent = {"seconds": working, "waited": loader.waited}
        window.add(tokens=8, loss_tokens=8, lr=0.0, grad_norm=torch.zeros(()), **spent)
    monkeypatch.setattr(ranks, "total", lambda values: values)  # of one process without a group
    return window.flush(lambda loss_sum, count: 0.0)["data_wait_share"]


def test_a_step_waits_for_rows_that_take_longer_than_it(monkeypatch):
    assert 0.5 < wait_share(monkeypatch, reading=0.2, working=0.02) < 0.95


def test_rows_that_are_read_meanwhile_are_not_waited_for(monkeypatch):
    assert wait_share(monkeypatch, reading=0.02, working=0.2) < 0.1  # the first row is
