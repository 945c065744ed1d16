"""What a run says of itself: rows in `metrics.jsonl` and in torchtune's logger, a bar or JSON lines on the screen."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spec import ranks
from spec.storage import Store
from spec.training import estimate
from spec.training.result import StepResult

FILE = "metrics.jsonl"
MeanLoss = Callable[[torch.Tensor, torch.Tensor], float]  # of loss sums and counts, both [P]
_LINE_EVERY = 10.0  # seconds between JSON lines where there is no terminal
_GIB = 2**30


class Sums:
    """Sums over batches and then over ranks, from which means by draft position follow. They stay on the device."""

    def __init__(self, positions: int, device: torch.device):
        self.values = torch.zeros(3, positions, dtype=torch.float64, device=device)  # loss sum, correct, count
        self.terms: dict[str, torch.Tensor] = {}  # the same of the loss's parts, where it has several: [positions] each

    def add(self, result: StepResult) -> None:
        self.values += torch.stack((result.loss_sum.double(), result.correct.double(), result.count.double()))
        if len(result.terms) > 1:
            self.terms = {name: self.terms.get(name, 0) + term.double() for name, term in result.terms.items()}

    def means(self, mean_loss: MeanLoss) -> dict[str, Any]:
        """Loss and accuracy by draft position, and the method's own mean; a position without rows counts as 0.

        Adds up the ranks' sums and waits for the device: every rank calls it.
        """
        own = torch.stack((*self.values, *self.terms.values()))  # [3 + terms, positions]
        loss_sum, correct, count, *terms = ranks.total(own).cpu()
        loss = mean_loss(loss_sum, count)
        count = count.clamp(min=1)
        return {
            "loss": loss,
            "loss_by_position": (loss_sum / count).tolist(),
            "accuracy_by_position": (correct / count).tolist(),
            **{f"{name}_by_position": (term / count).tolist() for name, term in zip(self.terms, terms, strict=True)},
        }


class Window:
    """The optimizer steps since the last logged row."""

    def __init__(self, positions: int, device: torch.device):
        self.positions, self.device = positions, device
        self.waited_before = 0.0
        self._begin()

    def _begin(self) -> None:
        self.sums = Sums(self.positions, self.device)
        self.seconds, self.cpu_seconds, self.tokens, self.loss_tokens = 0.0, 0.0, 0, 0

    def add(
        self,
        *,
        tokens: int,
        loss_tokens: int,
        lr: float,
        grad_norm: torch.Tensor,
        seconds: float,
        cpu_seconds: float,
        waited: float,
    ) -> None:
        """One step beside its `sums`: tokens of all ranks, this host's seconds, those that its threads computed, and
        all those waited for data so far.
        """
        self.tokens += tokens
        self.loss_tokens += loss_tokens
        self.seconds += seconds
        self.cpu_seconds += cpu_seconds
        self.lr, self.grad_norm, self.waited = lr, grad_norm, waited

    def flush(self, mean_loss: MeanLoss) -> dict[str, Any]:
        """The window's row of metrics; the next window begins. Every rank calls it, and waits for its device."""
        began = time.perf_counter()
        means = self.sums.means(mean_loss)
        waited = self.waited - self.waited_before
        seconds = self.seconds + waited + time.perf_counter() - began  # a device is behind its host until here
        cpu_seconds = ranks.total(torch.tensor([self.cpu_seconds], dtype=torch.float64))
        row = means | {
            "lr": self.lr,
            "grad_norm": float(self.grad_norm),
            "seconds": seconds,
            "cpu_seconds": float(cpu_seconds),  # of all ranks: what a step costs where others use the machine too
            "tokens_per_s": self.tokens / seconds,
            "loss_tokens_per_s": self.loss_tokens / seconds,
            "peak_memory_gib": peak_memory_gib(self.device),
            "data_wait_share": waited / seconds,
        }
        self.waited_before = self.waited
        self._begin()
        return row


class Logger(Protocol):
    """What torchtune's metric loggers have in common."""

    def log_dict(self, payload: Any, step: int) -> None: ...

    def close(self) -> None: ...


class Metrics:
    """Writes rows of metrics; only rank 0 has one."""

    def __init__(self, store: Store, scratch: Path, logger: Logger | None, *, step: int, steps: int):
        """`store`: the run's checkpoints/. `step`: where the run stands; later rows of an earlier attempt are cut."""
        self.store, self.logger = store, logger
        self.path = (store.local_path() or scratch) / FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            rows = store.read(FILE).decode().splitlines() if step else []
        except FileNotFoundError:
            rows = []
        kept = [row for row in rows if _is_upto(row, step)]
        store.write(FILE, "".join(row + "\n" for row in kept).encode())
        if store.local_path() is None:
            self.path.write_text("".join(row + "\n" for row in kept))
        self.file = self.path.open("a")
        self.bar = _bar(step, steps) if sys.stdout.isatty() else None
        self.steps, self.began, self.first, self.spoken = steps, time.monotonic(), step, 0.0

    def log(self, step: int, row: dict[str, Any]) -> None:
        """`row` has the keys of one line of metrics.jsonl besides `step`."""
        self.file.write(json.dumps({"step": step} | row) + "\n")
        self.file.flush()
        if self.logger is not None:
            self.logger.log_dict(_flat(row), step=step)
        self._show(step, row)

    def say(self, text: str) -> None:
        """One line for the reader, beside the bar."""
        if self.bar is not None:
            self.bar.console.print(text)
        else:
            print(text, flush=True)

    def publish(self) -> None:
        """Make what is written so far part of the run (nothing to do where the run is a directory)."""
        self.store.upload(FILE, self.path)

    def close(self) -> None:
        self.file.close()
        if self.bar is not None:
            self.bar.stop()
        if self.logger is not None:
            self.logger.close()

    def _show(self, step: int, row: dict[str, Any]) -> None:
        if "held_out" in row:
            held = row["held_out"]
            accuracy = " ".join(f"{value:.3f}" for value in held["accuracy_by_position"])
            told = f"accuracy by position {accuracy}, estimated accept length {held[estimate.KEY]:.3f}"
            self.say(f"step {step}: held-out loss {held['loss']:.4f}, {told}")
        elif self.bar is not None:
            self.bar.update(
                self.bar.task_ids[0],
                completed=step,
                description=f"loss {row['loss']:.4f}  accuracy {row['accuracy_by_position'][0]:.3f}  "
                f"{row['tokens_per_s']:.0f} tokens/s",
            )
        elif time.monotonic() - self.spoken > _LINE_EVERY or step == self.steps:
            self.spoken = time.monotonic()
            left = (self.spoken - self.began) / max(1, step - self.first) * (self.steps - step)
            short = {key: row[key] for key in ("loss", "lr", "tokens_per_s", "accuracy_by_position")}
            print(json.dumps({"step": step, "of": self.steps, "seconds_left": round(left)} | short), flush=True)


def peak_memory_gib(device: torch.device) -> float:
    """The accelerator's peak since the last call; on CPU the process's peak resident size."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak / _GIB
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB


def _is_upto(row: str, step: int) -> bool:
    try:
        return json.loads(row)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False  # a line cut short by a kill


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Loggers take scalars: lists become `name_0`, `name_1`, groups `group/name`."""
    flat: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}/")
        elif isinstance(value, list):
            flat |= {f"{prefix}{key}_{index}": item for index, item in enumerate(value)}
        else:
            flat[prefix + key] = value
    return flat


def _bar(step: int, steps: int) -> Progress:
    bar = Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    bar.add_task("", total=steps, completed=step)
    bar.start()
    return bar
