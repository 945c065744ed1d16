"""Moving what a batch is made of to its device without waiting for either."""

import dataclasses
from typing import Any

import torch


def to_device(thing: Any, device: torch.device) -> Any:
    """`thing` with its tensors on `device`: a tensor, or a dataclass or dict of such; anything else is as it was.

    To a GPU through pinned memory, as only from there a copy runs beside the host: it is ordered on the current stream,
    and PyTorch gives the pinned memory out again once it is over.
    """
    if isinstance(thing, torch.Tensor):
        if device.type == "cuda" and thing.device.type == "cpu":
            return thing.pin_memory().to(device, non_blocking=True)
        return thing.to(device)
    if isinstance(thing, dict):
        return type(thing)({name: to_device(value, device) for name, value in thing.items()})
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        moved = {field.name: to_device(getattr(thing, field.name), device) for field in dataclasses.fields(thing)}
        return type(thing)(**moved)
    return thing


def tensors_of(thing: object) -> list[torch.Tensor]:
    """All tensors that `to_device` would move."""
    if isinstance(thing, torch.Tensor):
        return [thing]
    if isinstance(thing, dict):
        return [tensor for value in thing.values() for tensor in tensors_of(value)]
    if dataclasses.is_dataclass(thing):
        return [tensor for field in dataclasses.fields(thing) for tensor in tensors_of(getattr(thing, field.name))]
    return []
