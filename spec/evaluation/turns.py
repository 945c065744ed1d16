"""Servers asked in turn, in short rounds: what changes on the machine meanwhile changes the figures of both."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import TypeVar

from spec.server.sglang import SglangServer, Timed

WARM_TOKENS = 8  # of the answers that are asked for before anything is timed, as many at once as will be

_Round = TypeVar("_Round")


def in_turn(
    servers: dict[str, SglangServer], rounds: Sequence[_Round], ask: Callable[[SglangServer, _Round], Timed]
) -> dict[str, list[Timed]]:
    """What each server said in each round. The first server is asked first in one round, and last in the next."""
    said: dict[str, list[Timed]] = {name: [] for name in servers}
    for at, one in enumerate(rounds):
        for name in list(servers) if at % 2 == 0 else reversed(servers):
            said[name].append(ask(servers[name], one))
    return said


def spread(values: Sequence[float]) -> list[float]:
    """[median, least, most]"""
    return [median(values), min(values), max(values)]
