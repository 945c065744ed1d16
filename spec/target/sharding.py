"""How the frozen target lies across ranks: whole on each, split inside each node, or split across all of them."""

import os
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from spec.errors import BadInput

Shard = Literal["none", "node", "world"]


def target_mesh(shard: Shard, device_type: str) -> DeviceMesh | None:
    """The ranks that hold one copy of the target together; None where each holds its own.

    `node`: torchrun's LOCAL_WORLD_SIZE ranks, so that a layer's all-gather stays on the links inside the node; each
    node has a copy. Nothing ever has to keep the copies equal: they are frozen. Every rank calls it.
    """
    if shard not in get_args(Shard):
        raise BadInput(f"target_shard: {shard!r}; it is one of {', '.join(get_args(Shard))}")
    if shard == "none" or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    world = dist.get_world_size()
    if shard == "world":
        return init_device_mesh(device_type, (world,), mesh_dim_names=("target",))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    sizes: list[int] = [0] * world  # of each rank's node: a rank sees its own alone, and all must make the same mesh
    dist.all_gather_object(sizes, local)
    if world % local or len(set(sizes)) > 1:
        nodes = " and ".join(map(str, sorted(set(sizes))))
        raise BadInput(f"{world} ranks do not divide into nodes of {nodes}: start the same number on every node")
    return init_device_mesh(device_type, (world // local, local), mesh_dim_names=("node", "target"))["target"]


def shard_layers(root: nn.Module, layers: nn.ModuleList, mesh: DeviceMesh) -> None:
    """Split every layer's parameters over `mesh` (FSDP2): gathered before it runs, let go after, the next one fetched
    meanwhile. What is outside the layers stays whole on every rank.
    """
    inside = {parameter for layer in layers for parameter in layer.parameters()}
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # The root owns no parameter: it is what runs the layers' gathers on one set of streams, hence in order.
    fully_shard(root, mesh=mesh, ignored_params=set(root.parameters()) - inside)
    for layer, following in zip(layers, list(layers)[1:], strict=False):
        assert isinstance(layer, FSDPModule) and isinstance(following, FSDPModule)
        layer.set_modules_to_forward_prefetch([following])


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a parameter, or all of it where it is not split."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
