"""A plan as text, and the plans of all configs as the README's table."""

import json
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig

from spec.planning.advice import verdict
from spec.planning.plan import GIB, RESERVE, SAMPLE_BYTES, Machines, Plan, measure, plan, read_plan_config

RESULTS = Path(__file__).parents[2] / "bench/gpu/results.json"


def show(result: Plan, cfg: DictConfig) -> str:
    """The plan in lines: parameters, memory by part in the fullest phase, time, disk, the verdict."""
    machines, sizes = result.machines, result.sizes
    active = sum(sizes.active) + sizes.outside
    lines = [
        f"target      {_count(sizes.parameters)} parameters, {_count(active)} a token; "
        f"{result.target_bytes / 1e9:.1f} GB on disk",
        f"draft       {_count(sizes.draft)} parameters; exported {result.draft_bytes / 1e9:.2f} GB, "
        f"a checkpoint {result.checkpoint_bytes / 1e9:.1f} GB",
        f"in SGLang   {result.draft_bytes / 1e9:.2f} GB of weights ({_parts(sizes.parts)}), "
        f"{2 * sizes.cache * 1e5 / 1e9:.2f} GB of the draft's keys and values for 100,000 tokens in bf16",
        f"samples     {SAMPLE_BYTES} GB a billion tokens",
        "",
        f"memory of a GPU, {machines.nodes} x {machines.gpus} of {machines.gpu_memory:g} GiB, at most (GiB):",
    ]
    names = dict.fromkeys(part for parts in result.phases.values() for part in parts)
    lines.append(f"  {'':20}" + "".join(f"{phase:>18}" for phase in result.phases))
    for name in names:
        row = "".join(f"{parts.get(name, 0) / GIB:18.2f}" for parts in result.phases.values())
        lines.append(f"  {name:20}{row}")
    lines.append(f"  {'CUDA, NCCL, holes':20}" + f"{RESERVE / GIB:18.2f}" * len(result.phases))
    sums = ((sum(parts.values()) + RESERVE) / GIB for parts in result.phases.values())
    lines.append(f"  {'together':20}" + "".join(f"{total:18.2f}" for total in sums))
    lines += [
        "",
        f"time        {1e3 * result.step_seconds:.0f} ms a step of {result.step_tokens} tokens, "
        f"{result.tokens_per_second:,.0f} tokens/s (at {machines.tflops:g} TFLOP/s and {machines.memory_bandwidth:g} "
        f"TB/s a GPU, {machines.node_bandwidth:g} and {machines.network_bandwidth:g} GB/s between them)",
        *(f"  {name:28}{1e3 * its:8.1f} ms" for name, its in result.seconds.items()),
        *_measured(),
        f"verdict     {verdict(result, cfg)}",
    ]
    return "\n".join(lines)


def _parts(parts: dict[str, int]) -> str:
    """Those of a draft's modules that take 1% of it or more."""
    least = sum(parts.values()) / 100
    return ", ".join(f"{name} {2 * count / 1e9:.2f}" for name, count in parts.items() if count >= least)


def _measured() -> list[str]:
    """What bench/gpu saw on a card, where it did."""
    if not RESULTS.exists():
        return []
    seen = json.loads(RESULTS.read_text()).get("train", {}).get("figures", {})
    return [
        f"measured    Llama 3.1 8B, one {seen['card']}, {name}: {its['ms']:.0f} ms a step, "
        f"{its['tokens_per_s']:,} tokens/s, {its['peak_gib']} GiB"
        for name, its in seen.items()
        if name in ("full", "chats") and "card" in seen
    ]


def table(configs: Iterable[Path], sets: Iterable[Machines]) -> str:
    """A Markdown table: a row for each config, two columns for each set of machines."""
    sets = list(sets)
    heads = [
        f"{m.nodes} x {m.gpus} x {m.gpu_memory:g} GB" if m.nodes > 1 else f"{m.gpus} x {m.gpu_memory:g} GB"
        for m in sets
    ]
    lines = [
        "| config | target | draft | " + " | ".join(f"{head}: memory a GPU | tokens/s" for head in heads) + " |",
        "|---|---|---|" + "---|---|" * len(sets),
    ]
    for config in configs:
        cfg, target = read_plan_config(config, [])
        sizes = measure(cfg, target)
        plans = [plan(cfg, sizes, machines) for machines in sets]
        cells = [f"`{config.parent.name}/{config.stem}`"]
        cells += [_count(sizes.parameters), _count(sizes.draft)]
        for result in plans:
            memory = f"{(result.peak + RESERVE) / GIB:.0f} GiB"
            if not result.fits:
                memory += f": {verdict(result, cfg).partition('; ')[2]}"
            cells += [memory, f"{result.tokens_per_second / 1000:,.0f}K" if result.fits else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _count(number: int) -> str:
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.0f}M"
