"""A run in a few numbers, for what watches workflows: their outputs, and the metrics that Argo makes of these."""

from spec.costs.sums import total
from spec.report.evidence import Evidence

NONE = "none"  # what is not known: Argo leaves its metric out


def figures(evidence: Evidence) -> dict[str, str]:
    """By the names of the workflow's outputs."""
    spent = total(evidence.spent)
    steps = [row for row in evidence.metrics if "seconds" in row and "tokens_per_s" in row]
    seconds = sum(row["seconds"] for row in steps)
    found = {
        "rows": evidence.answers.get("answers"),
        "train-tokens-per-second": sum(row["tokens_per_s"] * row["seconds"] for row in steps) / seconds
        if steps
        else None,
        "train-step-seconds": seconds / steps[-1]["step"] if steps else None,
        "accept-length": evidence.accept_length,
        "speed-up": evidence.speed_up,
        "gpu-hours": spent.gpu_hours,
        "cost": evidence.budget.money(spent),
    }
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: float | None) -> str:
    """Without an exponent, which Argo's conditions do not read."""
    if value is None:
        return NONE
    return str(value) if isinstance(value, int) else f"{value:.4f}"
