"""What a GPU takes for a part of a step: each operator by its FLOPs or its bytes, whichever is slower, and its launch.

Operators are seen on the meta device, as the real code calls them. A product's FLOPs are torch's own count; the bytes
of an operator are those of its inputs and outputs, of which a gather reads what it gives and no more.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

_FREE = ("empty", "detach", "alias", "view", "promote_types")
_GATHERS = {aten.index_select, aten.index, aten.embedding, aten.gather, aten.index_copy}
_SCATTERS = {aten.index_add, aten.index_add_, aten.scatter_add_}
# Where query, longest sequence of keys and `is_causal` stand among their arguments, and the products they do.
_FLASH = {aten._flash_attention_forward: (0, 6, 8, 2), aten._flash_attention_backward: (1, 9, 11, 5)}


@dataclass(frozen=True)
class Card:
    """What a GPU reaches, not its data sheet."""

    tflops: float  # in large products of bf16
    memory_tb_per_s: float
    launch_us: float  # of the host for one operator in eager mode, its Python included


@dataclass
class Work:
    """Operators as (FLOPs, bytes), and how many there are of each."""

    operators: Counter[tuple[int, int]] = field(default_factory=Counter)

    @property
    def launches(self) -> int:
        return self.operators.total()

    @property
    def flops(self) -> int:
        return sum(flops * count for (flops, _), count in self.operators.items())

    @property
    def bytes(self) -> int:
        return sum(size * count for (_, size), count in self.operators.items())

    def without_products(self) -> "Work":
        return Work(Counter({its: count for its, count in self.operators.items() if not its[0]}))

    def seconds(self, card: Card) -> float:
        """On the device, which the host keeps busy."""
        return sum(
            count * max(flops / (card.tflops * 1e12), size / (card.memory_tb_per_s * 1e12))
            for (flops, size), count in self.operators.items()
        )


class Watch(TorchDispatchMode):
    """The work that is done inside of it: that of tensors along a vocabulary, and the rest."""

    def __init__(self, *vocabularies: int):
        super().__init__()
        self.vocabularies, self.along_vocabulary, self.rest = set(vocabularies), Work(), Work()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = operator(*args, **kwargs)
        if not operator.is_view and not any(word in str(operator) for word in _FREE):
            given, made = _tensors((args, kwargs)), _tensors(result)
            packet = operator.overloadpacket
            flops = 0
            if packet in _FLASH:
                flops = _flash(packet, args)
            elif packet in flop_registry:
                flops = flop_registry[packet](*args, **kwargs, out_val=result)
            looked_up = packet in _GATHERS
            sizes = {dim for tensor in (made if looked_up else [*given, *made]) for dim in tensor.shape}
            work = self.along_vocabulary if sizes & self.vocabularies else self.rest
            work.operators[flops, _moved(packet, given, made)] += 1
        return result


def _flash(packet: Any, args: tuple) -> int:
    """Of sequences all as long; torch's own count leaves the mask out, and in 2.11 refuses grouped heads."""
    query, longest, causal, products = _FLASH[packet]
    return products * args[query].numel() * args[longest] * (1 if args[causal] else 2)


def _moved(packet: Any, given: list[torch.Tensor], made: list[torch.Tensor]) -> int:
    if packet in _GATHERS:
        return 2 * sum(tensor.nbytes for tensor in made)
    if packet in _SCATTERS:
        return 3 * given[-1].nbytes
    return sum({id(tensor): tensor.nbytes for tensor in [*given, *made]}.values())


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
