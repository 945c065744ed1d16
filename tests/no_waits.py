"""A mode in which whatever would make the host wait for a GPU is an error, on any device."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

# Their results, or the sizes of them, are read by the host.
FORBIDDEN = {
    *(aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten.item),
    *(aten._unique2, aten.unique_consecutive, aten.unique_dim, aten.bincount, aten.repeat_interleave),
}


# Before 2.13 a fake tensor's sum of a product and fp32 takes the dtype for a factor; a real one's does not.
FAKE_SUMS = pytest.mark.skipif(not torch.__version__ >= "2.13", reason="fake tensors of this torch")


class Waits(AssertionError):
    pass


class NoWaits(TorchDispatchMode):
    """Raises `Waits` at an operator that reads data on the host, at a mask as index, at a copy that blocks, and at a
    tensor that is made from a Python list on a GPU.
    """

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = operator.overloadpacket
        if packet in FORBIDDEN:
            raise Waits(f"{operator} is read by the host")
        if packet in (aten.index, aten.index_put, aten.index_put_, aten._unsafe_index) and any(
            isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8) for x in tree_leaves(args[1])
        ):
            raise Waits(f"{operator} by a mask: how much it gives is read by the host")
        result = operator(*args, **kwargs)
        if packet in (aten._to_copy, aten.copy_):
            source = args[1] if packet is aten.copy_ else args[0]
            blocking = not (kwargs.get("non_blocking") or (packet is aten.copy_ and len(args) > 2 and args[2]))
            if result.device.type != source.device.type and (blocking or result.device.type == "cpu"):
                raise Waits(f"{operator} from {source.device} to {result.device} blocks")
        if packet is aten.lift_fresh and result.device.type != "cpu":
            raise Waits("a tensor made from Python numbers on a GPU is a copy that blocks")
        return result
