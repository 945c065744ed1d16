"""The figures as tables."""

import sys

from rich.console import Console
from rich.table import Table

from bench.rounds import Json

console = Console(width=None if sys.stdout.isatty() else 150)


def show(results: Json) -> None:
    """Print every section that was measured."""
    if "step" in results:
        _steps("The draft step", {"as asked": results["step"]})
    if "blocks" in results:
        _steps("The block draft's step", results["blocks"]["sizes"])
    if "growth" in results:
        _steps("By length", results["growth"]["lengths"])
        console.print(
            f"memory grows with length ** {results['growth']['memory_exponent']}, in the last doubling "
            f"** {results['growth']['memory_exponent_last_doubling']}\n"
        )
    if "vocabularies" in results:
        _steps("By vocabulary: target's / draft's", results["vocabularies"]["sizes"])
    if "compiled" in results:
        _steps("torch.compile", {"as asked": results["compiled"]})
    if "packing" in results:
        _packing(results["packing"])
    if "preparation" in results:
        _preparation(results["preparation"])


def _steps(title: str, found: dict[str, Json]) -> None:
    table = Table("", "", "seconds", "CPU seconds", "peak GiB", "tokens/s", "of peak", title=title)
    for name in ("times faster", "CPU", "less memory", "loss differs"):
        table.add_column(name, justify="right")
    for label, its in found.items():
        for name, figures in its["contenders"].items():
            ratios = [""] * 4
            if name == "fast" and "speed_ratio" in its:
                ratios = [f"{its[key]:.2f}" for key in ("speed_ratio", "cpu_ratio", "memory_ratio")]
                ratios.append(f"{its['loss_difference']:.0e}")
            table.add_row(
                label,
                name,
                _spread(figures["seconds"]),
                _spread(figures["cpu_seconds"]),
                f"{figures['memory']['median'] / 2**30:.2f}",
                f"{figures['tokens_per_s']:.0f}" if "tokens_per_s" in figures else "",
                f"{figures['share_of_peak']:.0%}" if "share_of_peak" in figures else "",
                *ratios,
            )
    console.print(table)


def _packing(found: Json) -> None:
    table = Table("rows", "seconds", "CPU seconds", "padding", "loss-bearing tokens/s", title="Packing")
    for name, its in found["contenders"].items():
        times = _spread(its["seconds"]), _spread(its["cpu_seconds"])
        table.add_row(name, *times, f"{its['padding']:.1%}", f"{its['loss_tokens_per_s']:.0f}")
    console.print(table)
    faster = f"packed {found['speed_ratio']} times as fast, {found['cpu_ratio']} in CPU seconds"
    console.print(f"{faster}; losses differ by {found['loss_difference']:.0e}\n")


def _preparation(found: Json) -> None:
    its, vocabulary, packing = found["preparation"], found["vocabulary"], found["packing"]
    table = Table("", "seconds", "", title="Preparation")
    held = f"{its['memory'] / 2**20:.0f} MiB held"
    table.add_row("prepared", _spread(its["seconds_prepared"]), f"{its['ratio']} times bare tokenisation, {held}")
    if "speed_ratio_exact" in its:  # results.json may be of a time before it was measured
        faster = f"{its['speed_ratio_exact']} times as fast as prepared, {its['cpu_ratio_exact']} in CPU seconds"
        faster += f", {its['memory_exact'] / 2**20:.0f} MiB held"
        table.add_row("exact tokens", _spread(its["seconds_exact"]), faster)
    table.add_row("tokenised", _spread(its["seconds_bare"]), f"{its['conversations']} conversations")
    table.add_row("vocabulary map", _spread(vocabulary["seconds"]), f"{vocabulary['tokens']:,} tokens")
    table.add_row(
        "a plain loop", _spread(vocabulary["seconds_plain_loop"]), f"{vocabulary['tokens_plain_loop']:,} tokens"
    )
    table.add_row("packing", f"{packing['seconds']:.2f}", f"{packing['rows']:,} rows, padding {packing['padding']:.2%}")
    console.print(table)


def _spread(figures: Json) -> str:
    return f"{figures['median']:.2f} ({figures['least']:.2f} to {figures['most']:.2f})"
