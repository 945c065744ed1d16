"""What the house knows of a method of drafting, and all that it knows: this interface.

`Method` itself is plain data and checks, and imports neither torch nor transformers: preflight and publishing run in an
image without torch. What computes (`Training`, `Drafter`) is imported by the method when it is asked for.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from spec.methods.tensors import StoredTensor

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig
    from torch import nn
    from transformers import PretrainedConfig

    from spec.attention.documents import Documents
    from spec.target.frozen import Features, FrozenTarget
    from spec.training.batch import Batch
    from spec.training.result import StepResult

Json = dict[str, Any]
Drafts = int | Literal["adaptive"]  # a round

ADAPTIVE: Literal["adaptive"] = "adaptive"  # the server chooses how many, by what it keeps and how busy it is
Rows = list[tuple[str, Any]]


class Method(ABC):
    """One way to draft, under the name that a config's `method:` has."""

    name: str
    title: str  # as people write it
    paper: str  # arXiv number
    tags: tuple[str, ...]  # of a hub's model card
    algorithm: str  # the server's --speculative-algorithm
    architecture: str  # the only one in the exported config.json's `architectures`
    also_called: tuple[str, ...] = ()  # architectures that the server loads as the same model
    begins_from: tuple[str, ...]  # names of the methods whose drafts one of this can begin from
    about: str  # what the draft is, in a sentence of the card
    serving_note: str  # what goes wrong when it is served otherwise, for the card
    taken_on_trust: str  # what of a draft without our marker nothing but its acceptance would show to be wrong
    no_weights: frozenset[str]  # tensors of the export that are no weights: kept as they are, not counted

    # ---- settings of a training
    @property
    @abstractmethod
    def defaults(self) -> Path:
        """The YAML of the settings that are this method's own, with their defaults."""

    @abstractmethod
    def check_settings(self, cfg: "DictConfig") -> None:
        """`BadInput` names the first of the method's own settings whose value cannot be meant."""

    @abstractmethod
    def draft_config(self, cfg: "DictConfig", target: "PretrainedConfig") -> Any:
        """The own config of the draft that complete settings train for the text model `target`, as `Training.config`.
        `BadInput` if there can be none.
        """

    # ---- the server
    @abstractmethod
    def flags(self, drafts: Drafts) -> dict[str, str]:
        """The server's speculative options, but for the draft's path, for `drafts` a round; "" where one has no value.

        `BadInput` where the server cannot adapt their number and is to.
        """

    @abstractmethod
    def check_server(self, info: Json, drafts: Drafts, url: str) -> None:
        """`BadInput` if what a server says of itself (`/server_info`) is not this method at `drafts` a round."""

    # ---- the exported files
    @abstractmethod
    def target_facts(self, target: "PretrainedConfig") -> Json:
        """What this method's drafts depend on in a target's config, besides what every method's do."""

    @abstractmethod
    def check_config(self, path: Path, config: Json) -> None:
        """`BadInput` names what of `config.json` would make the server compute something that was not trained."""

    @abstractmethod
    def check_target(self, path: Path, config: Json, target: Json) -> None:
        """`BadInput` names what of `config.json` does not fit the target's facts."""

    @abstractmethod
    def tensor_shapes(self, config: Json) -> dict[str, tuple[int, ...]]:
        """Every tensor that `model.safetensors` holds, no more and no less."""

    @abstractmethod
    def check_tensors(self, path: Path, config: Json, tensors: dict[str, StoredTensor]) -> None:
        """`BadInput` names what is wrong with values, names and shapes being right."""

    @abstractmethod
    def norms(self, config: Json) -> tuple[str, ...]:
        """Names of the norms' weights, which are easily swapped: all have one shape."""

    @abstractmethod
    def describe(self, config: Json) -> Rows:
        """What a draft of this config is, as (name, value) rows of card and report."""

    @abstractmethod
    def most_drafts(self, config: Json) -> int | None:
        """Drafts a round that a draft of this config was trained for; None: any number."""

    @abstractmethod
    def mask_token(self, config: Json) -> int | None:
        """The target's token that stands for what is not drafted yet, so that no text may have it; None: none does."""

    # ---- drafts that others published
    @abstractmethod
    def as_served(self, config: Json, target: Json) -> Json:
        """A published `config.json` as ours are: what the server takes where it says nothing is written out.

        `target` are the facts of the target that it is served with. `BadInput` for a draft of a kind that is not known.
        """

    @abstractmethod
    def adopt(self, config: Json, tensors: "dict[str, torch.Tensor]") -> tuple[Json, "dict[str, torch.Tensor]"]:
        """Its `as_served` config and its tensors by the names of our exports, without those that the server drops."""

    # ---- what computes
    @abstractmethod
    def training(self, cfg: "DictConfig", target: "PretrainedConfig") -> "Training":
        """How a draft for the text model `target` is trained with complete settings. `BadInput` if it can't be."""

    @abstractmethod
    def read_draft(self, config: str) -> "nn.Module":
        """An empty draft by the JSON that training keeps beside its checkpoints, in fp32 on the CPU."""

    @abstractmethod
    def server_config(self, draft: "nn.Module", dtype: str, context_length: int) -> Json:
        """The `config.json` that the server reads."""

    @abstractmethod
    def trained_answer(self, draft: "nn.Module", dtype: "torch.dtype") -> "torch.Tensor":
        """The training module's logits on the probe, from weights rounded to `dtype`."""

    @abstractmethod
    def load(self, folder: Path, *, dtype: "torch.dtype", device: "torch.device | str" = "cpu") -> "Drafter":
        """An exported draft that drafts as the server does."""


class Training(Protocol):
    """A training of one draft, between the recipe's lines. P are the draft positions that loss is counted by.

    All that costs a forward of the target is in `look`, which may be kept from one epoch to the next; `observe` draws
    from it what an epoch trains on.
    """

    config: Any  # of the draft; `to_json()` is what `Method.read_draft` reads
    positions: int  # P
    head_rows: int  # of the target's head that the draft keeps a copy of
    cache: int  # numbers of a draft's keys and values for each token of a context
    start: Path | str  # what the draft begins as: `random`, `target`, or the folder of a draft as our exports are

    def check_start(self, config: Json) -> None:
        """`BadInput` names what the draft with this `config.json` has otherwise than the one to be trained."""

    def begin_from(self, folder: Path) -> str:
        """Have the draft in `folder`, which `check_start` has passed, be the `start`, and take from it what the samples
        would decide. Returns what of it begins anew or is left out, in words, or "".
        """

    def read_samples(self, folder: Path, url: str) -> str:
        """Take from the prepared samples what the draft needs, once its start is known; returns what of them is to be
        told, or "". `BadInput` if they are another target's or setting's.
        """

    def build(self, device: "torch.device | str") -> Any:
        """The draft, at random from torch's generator."""

    def initialise(self, draft: Any, target: "FrozenTarget") -> None:
        """Begin as `start` says. Every rank calls it."""

    def share_target(self, draft: Any, target: "FrozenTarget") -> None:
        """Lend the draft the target's frozen weights, once all of its own are sharded."""

    def prepare(self, batch: "Batch", epoch: int | None) -> Any:
        """What `epoch` (None: evaluation) needs to know of a batch on the host, made there ahead of the step as the
        batch's `rows`. Its tensors go to the device with the batch; a dataclass."""

    def look(self, draft: Any, target: "FrozenTarget", batch: "Batch") -> Any:
        """What the frozen target says of a batch."""

    def observe(self, draft: Any, look: Any, batch: "Batch", epoch: int | None) -> Any:
        """What `epoch` trains on of a look (None: evaluation); its `count [P]` are the rows that bear loss."""

    def weights(self, count: "torch.Tensor") -> "torch.Tensor":
        """`[P]`: what each position's sum of losses is multiplied by, given the rows `count [P]` of all ranks."""

    def loss(self, draft: Any, observation: Any, weights: "torch.Tensor") -> "StepResult":
        """The step; one backward only."""

    def mean_loss(self, loss_sum: "torch.Tensor", count: "torch.Tensor") -> float:
        """The loss to be logged, of sums over any number of batches."""

    def full_look(self, features: "Features", documents: "Documents", head: "torch.Tensor") -> Any:
        """A `look` on the meta device at a batch full of tokens that all bear loss: what the planner rehearses."""

    def full_observation(self, draft: Any, look: Any, documents: "Documents") -> Any:
        """`observe` of a `full_look`."""


class Drafter(Protocol):
    """An exported draft, one sequence at a time, written from the method's definition and not from the training."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The target's layers whose outputs it reads, 0-based, ascending."""

    def untrained(self, seed: int = 0) -> "Drafter":
        """One of the same shape that has learnt nothing: what chance accepts."""

    def probe_answer(self) -> "torch.Tensor":
        """Its logits on the fixed probe, in fp32."""

    def empty_cache(self) -> Any: ...

    def propose(
        self, tokens: "torch.Tensor", aux: "torch.Tensor", cache: Any, target: Any, drafts: int
    ) -> tuple[list[int], Any]:
        """`drafts` target ids after `tokens [T]`, whose positions before have the features `aux [T, layers * H]`.

        Returns them and the cache with the T positions read. `target` has the frozen `embed [V, H]` and `head [V, H]`.
        """

    def draw(
        self,
        tokens: "torch.Tensor",
        aux: "torch.Tensor",
        cache: Any,
        target: Any,
        drafts: int,
        *,
        temperature: float,
        generator: "torch.Generator",
    ) -> "tuple[list[int], torch.Tensor | None, Any]":
        """As `propose`, for an answer that is sampled at `temperature`.

        Second come the distributions `[drafts, V]` that the drafts were drawn from; None where they are the draft's
        first choices even then.
        """
