"""The frozen target's observations on disk: for a corpus so small that it is read many times over.

On two CPU cores the demo's target costs several times what its draft does, and says the same of the same rows in every
epoch. What is read back is bit for bit what was computed. A token takes `16 * H_target` bytes at fp32.
"""

import dataclasses
import hashlib
import tempfile
from pathlib import Path

import torch

from spec.errors import PassingFault
from spec.models.draft import EagleDraft
from spec.models.target import FrozenTarget
from spec.training.batch import Batch
from spec.training.step import Observation, observe


class FeatureCache:
    """`observe`, which runs the target over each batch only once. One for each rank and run: it is gone at the end."""

    def __init__(self, scratch: Path):
        scratch.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="features-", dir=scratch)

    def observe(self, draft: EagleDraft, target: FrozenTarget, batch: Batch, *, steps: int) -> Observation:
        """As `spec.training.step.observe`."""
        path = Path(self._folder.name) / f"{_key(batch)}.pt"
        if not path.exists():
            seen = observe(draft, target, batch, steps=steps)
            headless = dataclasses.replace(seen.wanted, head=torch.empty(0))  # the same rows of the target, every time
            try:
                torch.save(dataclasses.replace(seen, wanted=headless), path)
            except (OSError, RuntimeError) as error:  # torch hides a full disk's own error
                raise PassingFault(
                    f"{path.parent}: the target's features cannot be kept there ({str(error).splitlines()[0][:160]}); "
                    "free some space, set scratch to a folder that has it, or set cache_features=false"
                ) from error
            return seen
        seen = torch.load(path, map_location=batch.input_ids.device, mmap=True, weights_only=False)
        head = target.head_weight[draft.draft_tokens()]
        return dataclasses.replace(seen, wanted=dataclasses.replace(seen.wanted, head=head))

    def close(self) -> None:
        self._folder.cleanup()


def _key(batch: Batch) -> str:
    content = hashlib.sha256(batch.input_ids.cpu().numpy().tobytes())
    content.update(batch.loss_mask.cpu().numpy().tobytes())
    content.update(batch.documents.document_ids.cpu().numpy().tobytes())
    return content.hexdigest()
