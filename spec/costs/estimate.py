"""GPU-hours that a run will take, before it takes them: a range, wide where little is known. Imports no torch.

Its ends are bounds to plan by, no promise: the planner's time of training halved and threefold, and a server that
reaches all of a GPU's products or a twentieth of them. A cap is held against the lower end, which says what the run
cannot do without.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from spec.costs.budget import Budget, Training, used_by
from spec.errors import BadInput
from spec.storage import Store
from spec.storage.markers import read_marker

SPEEDS = Path(__file__).parents[1] / "planning" / "speeds.yaml"
LEAST_TOKENS = 32  # of a row, and of an answer: a shorter one is rare
MOST_TOKENS = 2048  # of a row: longer ones are set aside by default
_TFLOPS = 650.0  # as spec.planning.plan.Machines has it
_TRAINING, _SERVING = (0.5, 3.0), (1.0, 20.0)  # the range, in the time that is worked out


@dataclass(frozen=True)
class GpuHours:
    low: float = 0.0
    high: float | None = 0.0  # None: nobody knows

    def __add__(self, other: "GpuHours") -> "GpuHours":
        return GpuHours(
            self.low + other.low, None if self.high is None or other.high is None else self.high + other.high
        )

    def __str__(self) -> str:
        return f"from {self.low:.3g}" + ("; its end is not known" if self.high is None else f" to {self.high:.3g}")


def training_of(config: Path, settings: Mapping[str, Any], world: int) -> Training:
    """What a config, with complete settings, trains for on so many GPUs, at the speed that the planner gives it."""
    step = world * settings["max_length"] * settings["batch_size"] * settings["gradient_accumulation_steps"]
    return Training(
        tokens_per_gpu_second=_speed(config, "tokens_per_gpu_second") if world else 0,
        epochs=settings["epochs"] or 0,
        most_tokens=(settings["max_steps"] or 0) * step,
    )


def of_training(training: Training, tokens: tuple[float, float | None], trained: int = 0) -> GpuHours:
    """Of an epoch's `tokens`, from least to most (None: not known), of which so many are `trained` already."""
    if training.tokens_per_gpu_second is None:
        return GpuHours(0, None)
    if not training.tokens_per_gpu_second:
        return GpuHours()

    def left(once: float | None) -> float | None:
        bounds = [] if once is None or not training.epochs else [once * training.epochs]
        bounds += [training.most_tokens] if training.most_tokens else []
        return max(0.0, min(bounds) - trained) if bounds else None

    least, most = left(tokens[0]), left(tokens[1])
    hour = training.tokens_per_gpu_second * 3600
    return GpuHours((least or 0) / hour * _TRAINING[0], None if most is None else most / hour * _TRAINING[1])


def of_serving(config: Path, rows: tuple[float, float | None], *, gpus: int, max_tokens: int) -> GpuHours:
    """Of answers to so many rows, from least to most (None: not known), on a server of the config's own target."""
    if not gpus:
        return GpuHours()
    active = _speed(config, "active")
    if active is None:
        return GpuHours(0, None)
    hour = _TFLOPS * 1e12 / (2 * active) * 3600  # tokens of a GPU
    most = None if rows[1] is None else rows[1] * max_tokens / hour * _SERVING[1]
    return GpuHours(rows[0] * LEAST_TOKENS / hour * _SERVING[0], most)


def _speed(config: Path, of: str) -> float | None:
    """None for a config of one's own."""
    return yaml.safe_load(SPEEDS.read_text()).get(f"{config.parent.name}/{config.stem}", {}).get(of)


def tokens_of(run: Store, rows: tuple[float, float | None]) -> tuple[float, float | None]:
    """Of an epoch, from least to most: counted once the samples are made, else of as many rows as there are."""
    samples = read_marker(run, "samples/samples.json")
    if samples is None:
        return rows[0] * LEAST_TOKENS, None if rows[1] is None else rows[1] * MOST_TOKENS
    known = samples.facts["train"]["tokens"]
    return known, known


def tokens_trained(run: Store) -> int:
    """By the newest checkpoint."""
    keys = [entry.key for entry in run.list("checkpoints") if entry.key.endswith("/checkpoint.json")]
    markers = (read_marker(run, key) for key in keys)
    return max((marker.counts.get("tokens_seen", 0) for marker in markers if marker), default=0)


def check_cap(run: Store, budget: Budget, left: GpuHours) -> str:
    """What is used and what is left to use, in a line. `BadInput` where even the least of that is beyond the cap."""
    used = used_by(run).gpu_hours
    told = f"{used:.3g} GPU-hours are used, and what is left takes {left}, by estimate"
    if budget.max_gpu_hours and left.low and used + left.low > budget.max_gpu_hours:
        raise BadInput(
            f"parameter max-gpu-hours: {told}: more than {budget.max_gpu_hours:g}; "
            "submit the same run again with a higher max-gpu-hours, or train on less"
        )
    return told
