"""The loader has a batch ready before it is asked for, and says how long it was waited for."""

import time

import torch

from spec.training.loader import Loader
from spec.training.metrics import Sums, Window

STEPS = 6


class Rows:
    """Documents of eight tokens, each of which takes a while to read."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __getitem__(self, row: int):
        time.sleep(self.seconds)
        return [row] * 8, [1] * 8


def wait_share(*, reading: float, working: float) -> float:
    """`data_wait_share` of a window of steps that work so long on rows that take so long to read."""
    loader = Loader(Rows(reading), [[row] for row in range(STEPS)], width=None, batch_size=1)
    window = Window(1, torch.device("cpu"))
    for _ in loader.epoch(0):
        time.sleep(working)
        window.add(Sums(1, torch.device("cpu")), lr=0.0, grad_norm=0.0, seconds=working, waited=loader.waited)
    return window.flush(lambda loss_sum, count: 0.0)["data_wait_share"]


def test_a_step_waits_for_rows_that_take_longer_than_it():
    assert 0.5 < wait_share(reading=0.2, working=0.02) < 0.95


def test_rows_that_are_read_meanwhile_are_not_waited_for():
    assert wait_share(reading=0.02, working=0.2) < 0.1  # the first row is
