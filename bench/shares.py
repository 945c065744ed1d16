"""Where the time of a draft step goes, part by part.

    python3 -m bench.shares

CPU seconds on a CPU, which others on the machine hardly change; on a GPU wall seconds, waiting for it at each part's
ends. A part's time is without that of the parts inside it.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any

import torch
from rich.console import Console
from rich.table import Table
from typer import Option

from bench.contender import prepare_step
from bench.work import Work, device_and_dtype
from spec import cli
from spec.attention import block0
from spec.attention import merged as attention
from spec.methods.eagle3 import losses, step

REST = "the rest: linear layers, norms, RoPE, backward"


class Clock:
    """Charges the time that passes to the part that was entered last."""

    def __init__(self, device: torch.device):
        self.device, self.spent, self.inside = device, Counter[str](), [REST]
        self.mark = self._now()

    def part(self, holder: Any, name: str, label: str) -> None:
        """From now on `holder.name` is the part `label`."""
        function: Callable[..., Any] = getattr(holder, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._charge()
            self.inside.append(label)
            result = function(*args, **kwargs)
            self._charge()
            self.inside.pop()
            return result

        setattr(holder, name, staticmethod(timed) if isinstance(holder, type) else timed)

    def run(self, function: Callable[[], Any]) -> Counter[str]:
        """Seconds by part of one call of `function`."""
        self.spent, self.mark = Counter(), self._now()
        function()
        self._charge()
        return self.spent

    def _charge(self) -> None:
        now = self._now()
        self.spent[self.inside[-1]] += now - self.mark
        self.mark = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()


def main(
    length: Annotated[int, Option(min=64, help="Tokens a row.")] = 1024,
    repeats: Annotated[int, Option(min=1, help="Steps, of which the shortest counts.")] = 3,
) -> None:
    """Print each part's share of a draft step."""
    device, dtype = device_and_dtype()
    work = Work(length=length)
    clock = Clock(device)
    clock.part(step, "argmax_and_lse", "the target's choices and log-sum-exps, its whole vocabulary")
    clock.part(step, "step_loss", "linear layers, norms, RoPE, forward")
    clock.part(attention._TttAttention, "forward", "attention: diagonals, forward")
    clock.part(attention._TttAttention, "backward", "attention: diagonals, backward")
    clock.part(block0, "forward", "attention: block 0, forward")
    clock.part(block0, "backward", "attention: block 0, backward")
    clock.part(losses._DraftingLoss, "forward", "loss: the head's products, forward and backward")
    clock.part(losses, "softmax", "loss: softmaxes")
    run = prepare_step("fast", work, device, dtype)
    run()
    spent = min((clock.run(run) for _ in range(repeats)), key=lambda its: its.total())
    table = Table(
        "part", "seconds", "share", title=f"{spent.total():.2f} s, {torch.get_num_threads()} threads, {device}"
    )
    for label, seconds in spent.most_common():
        table.add_row(label, f"{seconds:.2f}", f"{seconds / spent.total():.0%}")
    Console().print(table)


if __name__ == "__main__":
    cli.run(main)
