"""The arithmetic of a run: what a rank holds in each phase of a step, how long a step takes, what lies on the disk.

Parameters are counted on the meta device, activations rehearsed there (`spec.planning.rehearsal`); what FSDP2 adds to
both is written down here, and tests/unit/planning holds it against what small runs on CPU really allocate.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from transformers import PretrainedConfig, PreTrainedModel

from spec import components, settings
from spec.methods import METHODS
from spec.methods.config import head_dim_of
from spec.planning.rehearsal import DTYPES, LAYERS, Rehearsal, rehearse
from spec.planning.roofline import Card
from spec.target.families import FAMILIES, read_config, text_config_of
from spec.target.loading import empty_model

GIB = 2**30
RESERVE = 3 * GIB  # CUDA's context, NCCL's buffers, the allocator's rounding and holes
GATHERED = 3  # layers whole at once: the one that runs, the next one's gather, the one before not yet let go
_ADAMW_BYTES = 36  # read and written of a parameter: clipped, weight, gradient, two moments
SAMPLE_BYTES = 5  # of a prepared token: an int32 id and a byte of mask


@dataclass(frozen=True)
class Machines:
    nodes: int = 1
    gpus: int = 8  # of each node
    gpu_memory: float = 80.0  # GiB
    tflops: float = 650.0  # what a GPU reaches in large products of bf16, not the data sheet's
    memory_bandwidth: float = 2.6  # TB/s that a pass over its memory reaches
    launch: float = 6.0  # microseconds of the host for an operator in eager mode
    node_bandwidth: float = 300.0  # GB/s of a GPU to the others of its node
    network_bandwidth: float = 40.0  # GB/s of a GPU to other nodes

    @property
    def world(self) -> int:
        return self.nodes * self.gpus

    @property
    def card(self) -> Card:
        return Card(self.tflops, self.memory_bandwidth, self.launch)


@dataclass(frozen=True)
class Sizes:
    """Parameters, and what a batch of them takes."""

    target: PretrainedConfig  # of the text model
    layers: tuple[int, ...]  # of each of the target's layers
    active: tuple[int, ...]  # those of each layer that one token passes through
    outside: int  # of the target's embedding, norm and head, whole on every rank
    parts: dict[str, int]  # the draft's, by its modules
    head_rows: int  # of the target's head that the draft keeps once more
    cache: int  # numbers that the server keeps for the draft of each token in its context
    rehearsal: Rehearsal

    @property
    def parameters(self) -> int:
        return sum(self.layers) + self.outside

    @property
    def draft(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Plan:
    machines: Machines
    sizes: Sizes
    phases: dict[str, dict[str, int]]  # phase of a step -> part -> bytes on one rank
    seconds: dict[str, float]  # part -> of one optimizer step
    step_tokens: int
    target_bytes: int  # on disk

    @property
    def checkpoint_bytes(self) -> int:
        return 12 * self.sizes.draft  # fp32 weights and AdamW's two moments

    @property
    def draft_bytes(self) -> int:
        return 2 * self.sizes.draft  # exported in bf16, without the embedding

    @property
    def fullest(self) -> str:
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def peak(self) -> int:
        return sum(self.phases[self.fullest].values())

    @property
    def fits(self) -> bool:
        return self.peak + RESERVE <= self.machines.gpu_memory * GIB

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def tokens_per_second(self) -> float:
        return self.step_tokens / self.step_seconds


def read_plan_config(config: Path, overrides: list[str]) -> tuple[DictConfig, PretrainedConfig]:
    """A config with `key=value` over it, and its target's sizes: of `target=DIR`, or of the JSON file beside it."""
    given = settings.read(config, overrides)
    sizes = given.get("target") or config.with_name(config.stem.rpartition("_")[0] + ".json")
    cfg = components.check(settings.complete(DictConfig({"run_dir": "RUN", "target": str(sizes)} | given)))
    return cfg, text_config_of(read_config(sizes))


def measure(cfg: DictConfig, target: PretrainedConfig) -> Sizes:
    """What hangs on the config and the target alone; takes seconds. `BadInput` where they do not fit together."""
    method = METHODS[cfg.method].training(cfg, target)
    model = empty_model(target, FAMILIES[target.model_type], DTYPES[cfg.target_dtype])
    layers = tuple(sum(p.numel() for p in layer.parameters()) for layer in model.model.layers)
    with torch.device("meta"):
        draft = method.build("meta")
    parts = {name: sum(p.numel() for p in module.parameters()) for name, module in draft.named_children()}
    return Sizes(
        target=target,
        layers=layers,
        active=tuple(_active(layer, target) for layer in model.model.layers),
        outside=sum(p.numel() for p in model.parameters()) - sum(layers),
        parts={name: count for name, count in parts.items() if count},
        head_rows=method.head_rows,
        cache=method.cache,
        rehearsal=rehearse(cfg, target, method),
    )


def plan(cfg: DictConfig, sizes: Sizes, machines: Machines) -> Plan:
    """`cfg` complete, and `measure` of it."""
    return Plan(
        machines=machines,
        sizes=sizes,
        phases=memory(cfg, sizes, machines),
        seconds=seconds(cfg, sizes, machines),
        step_tokens=cfg.max_length * cfg.batch_size * cfg.gradient_accumulation_steps * machines.world,
        target_bytes=sizes.parameters * DTYPES[cfg.target_dtype].itemsize,
    )


def memory(cfg: DictConfig, sizes: Sizes, machines: Machines) -> dict[str, dict[str, int]]:
    """Bytes of each part that a rank holds in each phase of an optimizer step."""
    rehearsal, draft = sizes.rehearsal, sizes.draft
    sharers = _sharers(cfg, machines)
    width, compute = DTYPES[cfg.target_dtype].itemsize, DTYPES[cfg.dtype].itemsize
    share = -(-draft // machines.world)
    observed = rehearsal.observed * cfg.gradient_accumulation_steps
    head = sizes.head_rows * sizes.target.hidden_size
    held = {
        "target": (sum(sizes.layers) // sharers + sizes.outside + head) * width,
        "draft, fp32 share": 4 * share,
        "optimizer": 8 * share,
    }
    gathered = GATHERED * max(sizes.layers) * width if sharers > 1 else 0
    kept = 4 * draft if cfg.gradient_accumulation_steps > 1 else 0  # in fp32 and whole until the last batch
    whole = compute * draft
    return {
        "target's forward": held
        | {
            "layers gathered": gathered,
            "draft gathered": whole,  # begun before the target looks
            "activations": rehearsal.looking + observed - rehearsal.observed,
        },
        "draft's step": held
        | {
            "draft gathered": whole,
            "gradients": whole + kept,
            "activations": rehearsal.stepping - whole + observed,
        },
        "gradients' sum": held | {"gradients": whole + 4 * draft + 4 * share + kept, "activations": observed},
    }


def _sharers(cfg: DictConfig, machines: Machines) -> int:
    """Ranks that hold one copy of the target together."""
    return {"none": 1, "node": machines.gpus, "world": machines.world}[cfg.target_shard]


def _active(layer: PreTrainedModel, config: PretrainedConfig) -> int:
    """A layer's parameters that one token passes through: all but the experts that its router leaves out."""
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 1
    routed = sum(p.numel() for name, p in layer.named_parameters() if ".experts." in name)
    rest = sum(p.numel() for p in layer.parameters()) - routed
    return rest + routed * getattr(config, "num_experts_per_tok", 1) // experts if routed else rest


def seconds(cfg: DictConfig, sizes: Sizes, machines: Machines) -> dict[str, float]:
    """Each part of one optimizer step, by its roofline. The target's layers hide the next one's gather and the draft's,
    the gradients' sum is waited for; so is a host that launches slower than its device computes.
    """
    target, card, rehearsal = sizes.target, machines.card, sizes.rehearsal
    tokens, flops = cfg.max_length * cfg.batch_size, machines.tflops * 1e12
    width, sharers = DTYPES[cfg.target_dtype].itemsize, _sharers(cfg, machines)
    head_dim = head_dim_of(target)
    attention = 2 * cfg.max_length * target.num_attention_heads * head_dim  # FLOPs a token, causal
    layers = len(sizes.layers)
    passes = rehearsal.passes.seconds(card) / LAYERS  # of a layer
    looking = sum(
        max(
            max(tokens * (2 * active + attention) / flops, size * width / (machines.memory_bandwidth * 1e12)) + passes,
            _transfer(size * width, sharers, machines),
        )
        for active, size in zip(sizes.active, sizes.layers, strict=True)
    )
    parts = {
        "target's forward": looking,
        "draft, forward and backward": rehearsal.draft.seconds(card),
        "loss": rehearsal.loss.seconds(card),
    }
    launches = rehearsal.passes.launches * layers / LAYERS + 8 * layers  # and the products of a layer
    launches += rehearsal.draft.launches + rehearsal.loss.launches
    parts["launches not hidden"] = max(0.0, launches * machines.launch * 1e-6 - sum(parts.values()))
    parts = {name: cfg.gradient_accumulation_steps * its for name, its in parts.items()}
    share = sizes.draft / machines.world
    parts["optimizer"] = share * _ADAMW_BYTES / (machines.memory_bandwidth * 1e12)
    parts["gradients' sum"] = _transfer(4 * sizes.draft, machines.world, machines)
    return parts


def _transfer(size: int, ranks: int, machines: Machines) -> float:
    """Seconds for an all-gather or a reduce-scatter of `size` bytes over `ranks`."""
    bandwidth = machines.node_bandwidth if ranks <= machines.gpus else machines.network_bandwidth
    return size * (ranks - 1) / ranks / (bandwidth * 1e9)
