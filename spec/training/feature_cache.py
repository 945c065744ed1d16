"""The frozen target's observations on disk: for a corpus so small that it is read many times over.

On two CPU cores the demo's target costs several times what its draft does, and says the same of the same rows in every
epoch. What is read back is bit for bit what was computed. A token takes `16 * H_target` bytes at fp32.
"""

import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spec.attention.to_device import to_device
from spec.errors import PassingFault
from spec.ranks import Ranks, together
from spec.target.frozen import FrozenTarget
from spec.training.batch import Batch

Look = Callable[[Any, FrozenTarget, Batch], Any]


class FeatureCache:
    """A method's `look`, which runs the target over each batch only once, whichever rank of the node met it first.

    Made by all ranks together: one folder a node, begun anew by every run and gone at its end.
    """

    def __init__(self, look: Look, scratch: Path, ranks: Ranks):
        self._look = look
        self._folder = scratch / "features"
        if ranks.local_rank == 0:
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        together(lambda: self._begin_anew() if ranks.local_rank == 0 else None)

    def _begin_anew(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)  # what a killed run left may be of another target
        self._folder.mkdir(parents=True)

    def look(self, draft: Any, target: FrozenTarget, batch: Batch) -> Any:
        """As the method's."""
        path = self._folder / f"{batch.key}.pt"
        if not path.exists():
            seen = self._look(draft, target, batch)
            half_written = path.with_suffix(f".{os.getpid()}")
            try:
                torch.save(seen, half_written)
                half_written.replace(path)
            except (OSError, RuntimeError) as error:  # torch hides a full disk's own error
                raise PassingFault(
                    f"{path.parent}: the target's features cannot be kept there ({str(error).splitlines()[0][:160]}); "
                    "free some space, set scratch to a folder that has it, or set cache_features=false"
                ) from error
            return seen
        read = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
        return to_device(read, batch.input_ids.device)
