"""What a GPU-hour costs and how many there may be: RUN/costs/budget.json, which preflight writes at every submission.

In no digest: another price or a higher cap changes nothing of what is done.
"""

import json
import math
import time
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, ValidationError

from spec.costs.meter import process_began
from spec.costs.records import read_all
from spec.costs.sums import Spent, by_step, total
from spec.errors import BadInput
from spec.storage import Store

KEY = "costs/budget.json"
ANY = "*"  # a price for kinds of GPU that have none of their own


class Training(BaseModel):
    """What a run's config trains for, as preflight knew it: what its estimate goes by once the tokens are known."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    tokens_per_gpu_second: NonNegativeFloat | None = 0  # 0: on CPUs; None: not known
    epochs: NonNegativeFloat = 0  # 0: only as many tokens as there may be at most
    most_tokens: NonNegativeFloat = 0  # of all steps; 0: no bound but the epochs


class Budget(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    per_gpu_hour: dict[str, NonNegativeFloat] = {}  # by kind of GPU
    currency: str = ""
    max_gpu_hours: NonNegativeFloat = 0  # 0: no cap
    training: Training = Training()

    def money(self, spent: Spent) -> float | None:
        """What that costs; None where a kind of GPU has no price."""
        if not self.per_gpu_hour or self._unpriced(spent):
            return None
        price = self.per_gpu_hour.get
        return sum(seconds / 3600 * price(kind, price(ANY, 0.0)) for kind, seconds in spent.gpu_seconds.items())

    def _unpriced(self, spent: Spent) -> list[str]:
        return [kind for kind in spent.gpu_seconds if kind not in self.per_gpu_hour and ANY not in self.per_gpu_hour]

    def told(self, spent: Spent) -> str:
        """As `12.3 GPU-hours, 30.75 EUR`; where prices are given and one lacks, for which kind of GPU."""
        money = self.money(spent)
        price = f", {money:,.2f} {self.currency}".rstrip() if money is not None else ""
        if self.per_gpu_hour and (kinds := self._unpriced(spent)):
            price = (
                f", no price for {' and '.join(kind or 'GPUs of a kind that no node selector names' for kind in kinds)}"
            )
        return f"{spent.gpu_hours:,.{_digits(spent.gpu_hours)}f} GPU-hours{price}"


def parse_prices(text: str) -> dict[str, float]:
    """Prices of a GPU-hour as JSON, `{"NVIDIA-H100-80GB-HBM3": 2.5, "*": 3}`. `BadInput` for what is none."""
    try:
        prices = json.loads(text or "{}")
    except ValueError as error:
        raise BadInput(f'{text}: no JSON ({error}); a price by kind of GPU reads {{"*": 2.5}}') from error
    if not isinstance(prices, dict):
        raise BadInput(f'{text}: a price by kind of GPU reads {{"*": 2.5}}')
    for kind, price in prices.items():
        if isinstance(price, bool) or not isinstance(price, int | float) or not math.isfinite(price) or price < 0:
            raise BadInput(f"{kind}: {json.dumps(price)} is no price of a GPU-hour; a number from 0 on is")
    return prices


def read_budget(run: Store) -> Budget:
    """The run's; one without prices or a cap where nobody has given any."""
    try:
        return Budget.model_validate_json(run.read(KEY))
    except FileNotFoundError:
        return Budget()
    except ValidationError as error:
        raise BadInput(f"{run.url}/{KEY}: {error.errors()[0]['msg']}; mend or delete it") from error


def write_budget(run: Store, budget: Budget) -> None:
    run.write(KEY, (budget.model_dump_json() + "\n").encode())


def used_by(run: Store, until: float | None = None) -> Spent:
    """What all steps of a run have used, `until` a time in seconds since 1970."""
    return total(by_step(read_all(run), until))


@dataclass
class Cap:
    """For a process that holds `gpus` since it began: how far its run is from the cap of GPU-hours."""

    hours: float  # 0: none
    before: float  # GPU-seconds of the run until `began`
    gpus: int
    began: float  # the step, in seconds since 1970

    @classmethod
    def of(cls, run: Store, gpus: int, began: float | None = None) -> "Cap":
        """As the run's budget and its records have it now; the step `began` with its process, where not told."""
        hours, began = read_budget(run).max_gpu_hours, process_began() if began is None else began
        before = sum(used_by(run, began).gpu_seconds.values()) if hours else 0.0
        return cls(hours, before, gpus, began)

    def used(self) -> float:
        """GPU-hours until now."""
        return (self.before + self.gpus * (time.time() - self.began)) / 3600

    def would_pass(self, seconds: float = 0.0) -> bool:
        """Whether this many seconds more would take the run past its cap."""
        return bool(self.hours) and self.used() + self.gpus * seconds / 3600 >= self.hours

    def refusal(self, where: str) -> BadInput:
        return BadInput(
            f"max-gpu-hours: {self.used():.{_digits(self.used())}f} GPU-hours are used of {self.hours:g}; {where}; "
            "submit the same run again with a higher max-gpu-hours, and it goes on"
        )


def check_cap(run: Store, where: str) -> None:
    """For a step that holds no GPU, while the servers that it asks do: `BadInput` once the run has reached its cap."""
    cap = Cap.of(run, 0, began=time.time())
    if cap.would_pass():
        raise cap.refusal(where)


def _digits(hours: float) -> int:
    return 1 if hours >= 10 else 2 if hours >= 0.1 else 4
