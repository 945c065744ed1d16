"""What to change where a plan does not fit, tried out on the plan itself."""

import dataclasses

from omegaconf import DictConfig, OmegaConf

from spec.planning.plan import GIB, RESERVE, Plan, measure, plan

# In the order of what they cost: a little time, some links, then what the draft learns from.
_CHANGES = (
    {"activation_checkpointing": True},
    {"target_shard": "node"},
    {"batch_size": 1},
    {"target_shard": "world"},
)
_MOST_NODES = 64


def advice(result: Plan, cfg: DictConfig) -> str:
    """For a plan that does not fit: the settings with which it does, else the nodes, else a shorter length."""
    machines, sizes = result.machines, result.sizes
    changed = OmegaConf.create(OmegaConf.to_container(cfg))
    assert isinstance(changed, DictConfig)
    taken: dict[str, str] = {}
    for change in _CHANGES:
        if all(changed[name] in (value, "world") for name, value in change.items()):
            continue  # so it is already, or split further
        changed.update(change)
        taken |= {name: str(value).lower() for name, value in change.items()}
        if change.keys() != {"target_shard"}:
            sizes = measure(changed, sizes.target)
        if plan(changed, sizes, machines).fits:
            return "set " + " ".join(f"{name}={value}" for name, value in taken.items())
    settings = " ".join(f"{name}={value}" for name, value in taken.items())
    for nodes in _powers_of_two(machines.nodes * 2, _MOST_NODES):
        if plan(changed, sizes, dataclasses.replace(machines, nodes=nodes)).fits:
            return f"take {nodes} nodes" + (f" and set {settings}" if settings else "")
    return "a shorter max_length, or GPUs with more memory"


def _powers_of_two(first: int, last: int) -> list[int]:
    return [count for count in (first * 2**n for n in range(10)) if count <= last]


def verdict(result: Plan, cfg: DictConfig) -> str:
    """`fits` with what is left, or what to change."""
    machines = result.machines
    left = machines.gpu_memory - (result.peak + RESERVE) / GIB
    if result.fits:
        return f"fits: {left:.0f} of {machines.gpu_memory:g} GiB left"
    return f"does not fit, by {-left:.0f} GiB; {advice(result, cfg)}"
