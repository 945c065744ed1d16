"""Saving and resuming: torch's distributed checkpoint in `checkpoints/step-000400/`, counted only by its marker.

Every rank writes its own part (into the run's directory, or into scratch and from there to S3), and rank 0 writes
`checkpoint.json` once all parts are there. A folder without it is a save that was cut short; nobody reads it.
Ranks may come back in another number: torch reshards what it reads.
"""

import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from spec import cli
from spec.errors import BadInput, PassingFault, SpecError
from spec.ranks import Ranks, first_decides, together
from spec.storage import Store, file_sha256
from spec.storage.markers import File, Json, Marker, describe_files, difference, digest_of, read_marker, write_marker
from spec.training import estimate

MARKER = "checkpoint.json"
DRAFT_CONFIG = "draft_config.json"
_NAME = re.compile(r"step-(\d{6,})/checkpoint\.json")


@dataclass
class Progress:
    """How far a run has come: optimizer steps taken, and the bins of the current epoch that they have used up."""

    step: int = 0
    epoch: int = 0
    bins_done: int = 0
    tokens_seen: int = 0

    @classmethod
    def of(cls, marker: Marker) -> "Progress":
        return cls(**marker.counts)


class Checkpoints:
    """The checkpoints of one run, made and continued with one set of deciding settings and inputs."""

    def __init__(self, store: Store, scratch: Path, ranks: Ranks, *, settings: Json, inputs: Json, keep: int):
        """`keep`: so many of the newest stay, and the best (see `find_best`)."""
        self.store, self.scratch, self.ranks = store, scratch, ranks
        self.settings, self.inputs, self.keep = settings, inputs, keep

    def newest(self, *, overwrite: bool = False) -> tuple[str, Marker] | None:
        """Name and marker of the newest complete checkpoint, or None; on every rank the same.

        `BadInput` names the difference if it is of other settings or inputs, unless `overwrite`, which deletes all.
        """

        def find() -> tuple[str, Marker] | None:
            for name in reversed(list_complete(self.store)):
                marker = read_marker(self.store, f"{name}/{MARKER}")
                if marker is None:
                    continue
                if marker.digest == digest_of("train", self.settings, self.inputs):
                    return name, marker
                if not overwrite:
                    raise BadInput(
                        f"{self.store.url}/{name} is of another training: "
                        f"{difference(marker, self.settings, self.inputs)}; overwrite=true trains anew"
                    )
                self._remove(name)
            return None

        return first_decides(find)

    def save(self, progress: Progress, state: Json, draft_config: str, facts: Json) -> None:
        """Write `state` (tensors, DTensors, plain values) as the checkpoint of `progress`. Every rank calls it."""
        name = f"step-{progress.step:06d}"
        folder = self._folder(name)
        store = self.store.at(name)

        def clear() -> None:  # what an earlier save of this step left behind, perhaps by other ranks
            self._remove(name)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)

        first_decides(clear)
        together(lambda: folder.mkdir(parents=True, exist_ok=True))
        try:
            dcp.save(state, checkpoint_id=folder)
        except CheckpointException as error:  # on all ranks alike
            raise _unwritten(folder, error) from error

        def hand_over() -> dict[str, File]:
            own = sorted(path.name for path in folder.glob(f"__{self.ranks.rank}_*"))
            if self.ranks.rank == 0:
                (folder / DRAFT_CONFIG).write_text(draft_config)
                own += [".metadata", DRAFT_CONFIG]
            files = describe_files(folder, own)
            for file in own:
                store.upload(file, folder / file)
            return files

        parts: list[Any] = [None] * self.ranks.world
        dist.all_gather_object(parts, together(hand_over))
        files = {file: entry for part in parts for file, entry in part.items()}

        def conclude() -> None:
            if absent := sorted(set(files) - {entry.key for entry in store.list()}):
                raise BadInput(
                    f"{store.url}: {absent[0]} is not seen from the first node: "
                    "nodes must share the run's directory, or the run must be in S3"
                )
            marker = Marker.of(
                "train",
                self.settings,
                self.inputs,
                files=files,
                counts=asdict(progress),
                facts=facts | {"ranks": self.ranks.world},
            )
            write_marker(store, MARKER, marker)
            best = find_best(self.store)
            for old in list_complete(self.store)[: -self.keep]:
                if best is None or old != best[0]:
                    self._remove(old)

        first_decides(conclude)
        if self.store.local_path() is None:
            shutil.rmtree(folder, ignore_errors=True)

    def load(self, name: str, marker: Marker, state: Json) -> None:
        """Read checkpoint `name` into `state`, whose tensors are filled in place. Every rank calls it."""
        folder = self._folder(name)
        store = self.store.at(name)
        ours = [file for index, file in enumerate(sorted(marker.files)) if self._reads(index)]

        def verify() -> None:
            for file in ours:
                if store.local_path() is None:
                    store.download(file, folder / file)
                path = folder / file
                if not path.is_file() or file_sha256(path) != marker.files[file].sha256:
                    raise BadInput(
                        f"{store.url}/{file}: missing or damaged; delete {MARKER} beside it to go on from the "
                        "checkpoint before"
                    )

        together(verify)
        dcp.load(state, checkpoint_id=folder)
        if self.store.local_path() is None:
            dist.barrier()
            shutil.rmtree(folder, ignore_errors=True)

    def _reads(self, index: int) -> bool:
        """The ranks of a node share the work of fetching and checking the files that all of them read."""
        return index % self.ranks.local_world == self.ranks.local_rank

    def _folder(self, name: str) -> Path:
        return (self.store.local_path() or self.scratch / "checkpoints") / name

    def _remove(self, name: str) -> None:
        self.store.delete(f"{name}/{MARKER}")  # first: half a checkpoint must not look whole
        for entry in self.store.list(name):
            self.store.delete(entry.key)
        folder = self.store.local_path()
        if folder is not None:
            shutil.rmtree(folder / name, ignore_errors=True)


def _unwritten(folder: Path, error: CheckpointException) -> SpecError:
    """Why a checkpoint could not be written, told once for all ranks. torch often hides a full disk's own error."""
    why = next((failure for failure, _ in error.failures.values()), error)
    known = cli.as_expected(why) if isinstance(why, OSError) else None
    told = known or PassingFault(
        f"{folder} could not be written ({str(why).splitlines()[0][:160]}), most likely for want of space "
        f"({shutil.disk_usage(folder).free >> 20} MiB are free); free some and start this again: it goes on from the "
        "newest checkpoint"
    )
    told.agreed = True
    return told


def find_best(store: Store) -> tuple[str, float] | None:
    """The complete checkpoint with the highest estimated accept length, the newest of equal ones, and that estimate.

    None where no checkpoint has one.
    """
    markers = {name: read_marker(store, f"{name}/{MARKER}") for name in list_complete(store)}
    return estimate.best({name: marker.facts for name, marker in markers.items() if marker})


def list_complete(store: Store) -> list[str]:
    """Names of the complete checkpoints of a run's `checkpoints/`, oldest first."""
    matches = filter(None, (_NAME.fullmatch(entry.key) for entry in store.list()))
    return [f"step-{match[1]}" for match in sorted(matches, key=lambda match: int(match[1]))]
