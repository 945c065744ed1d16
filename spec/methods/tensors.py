"""Reads safetensors files without torch: header, sizes, and each tensor's bytes as a memory-mapped array.

The safetensors package needs a framework that knows bfloat16 for this; numpy does not.
"""

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spec.errors import BadInput

# bfloat16 comes as its bits
_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F64": np.float64, "I64": np.int64, "BOOL": np.bool_}
_BLOCK = 1 << 24  # values looked at together


@dataclass(frozen=True)
class StoredTensor:
    dtype: str  # as safetensors names it: F32, BF16, I64, BOOL
    shape: tuple[int, ...]
    values: np.ndarray  # flat, memory-mapped

    def array(self) -> np.ndarray:
        return self.values.reshape(self.shape)

    def finite(self) -> bool:
        return all(self._finite(self.values[at : at + _BLOCK]) for at in range(0, len(self.values), _BLOCK))

    def _finite(self, block: np.ndarray) -> bool:
        if self.dtype == "BF16":
            return bool((block & 0x7F80 != 0x7F80).all())  # an exponent of all ones is Inf or NaN
        return bool(np.isfinite(block).all())

    def sha256(self) -> str:
        return hashlib.sha256(self.values.data).hexdigest()


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file by name; `BadInput` if it is not one, or is not all there."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            (header_size,) = struct.unpack("<Q", file.read(8))
            if header_size > size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(header_size))
        header.pop("__metadata__", None)
        start = 8 + header_size
        end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if size != end:
            raise ValueError(f"{size} bytes where its header promises {end}")
        return {name: _stored(path, entry, start) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise BadInput(f"{path}: truncated or not a safetensors file ({error}); make or download it again") from error


def _stored(path: Path, entry: dict, start: int) -> StoredTensor:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    if dtype not in _NUMPY:
        raise BadInput(f"{path}: a tensor of dtype {dtype}, which no draft has")
    first, last = entry["data_offsets"]
    count = (last - first) // np.dtype(_NUMPY[dtype]).itemsize
    if count != int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"{last - first} bytes for a {dtype} tensor of shape {shape}")
    if count == 0:
        return StoredTensor(dtype, shape, np.empty(0, _NUMPY[dtype]))
    values = np.memmap(path, dtype=_NUMPY[dtype], mode="r", offset=start + first, shape=(count,))
    return StoredTensor(dtype, shape, values)
