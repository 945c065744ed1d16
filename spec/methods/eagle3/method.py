"""EAGLE-3 as the house knows it."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spec.errors import BadInput
from spec.methods.checks import check_initialise, check_names
from spec.methods.eagle3 import checks, layout, published
from spec.methods.eagle3.config import DraftConfig, draft_config
from spec.methods.method import ADAPTIVE, Drafter, Drafts, Json, Method, Rows, Training
from spec.methods.tensors import StoredTensor

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig
    from transformers import PretrainedConfig

_THE_TARGETS = {"target_hidden_size", "vocab_size", "draft_vocab_size", "feature_layers"}  # not to choose
_ADAPTS_FROM = 3  # drafts a round, one of the numbers that SGLang chooses from
_COUNTS = ("draft_vocab_size", "steps")
_OPTIONAL = ("draft_vocab_size",)
_CHOICES = {"objective": ("ce", "lk", "hard")}


class Eagle3(Method):
    name = "eagle3"
    title = "EAGLE-3"
    paper = "2503.01840"
    tags = ("eagle3",)
    algorithm = "EAGLE3"  # `EAGLE` runs too, and accepts nothing
    architecture = "LlamaForCausalLMEagle3"
    begins_from = ("eagle3",)
    about = "A decoder layer, or a few, over three of the target's hidden states"
    serving_note = (
        "All three speculative numbers go together, and the algorithm is `EAGLE3`: with `EAGLE` the server runs "
        "without a\nwarning and accepts nothing."
    )
    taken_on_trust = "which norm is which, RoPE, and the values of all weights"
    no_weights = frozenset(layout.VOCABULARY_MAP)
    defaults = Path(__file__).with_name("defaults.yaml")

    def check_settings(self, cfg: "DictConfig") -> None:
        check_initialise(cfg.initialise, cfg.initialise_else)
        for name, choices in _CHOICES.items():
            if cfg[name] not in choices:
                raise BadInput(f"config: {name}={cfg[name]!r}; it is one of {', '.join(choices)}")
        for name in _COUNTS:
            if cfg[name] is None and name in _OPTIONAL:
                continue
            if not isinstance(cfg[name], int) or isinstance(cfg[name], bool) or cfg[name] < 1:
                raise BadInput(f"config: {name}={cfg[name]!r}; it is a whole number of at least 1")
        if not isinstance(cfg.decay, int | float) or isinstance(cfg.decay, bool) or not 0 < cfg.decay <= 1:
            raise BadInput(f"config: decay={cfg.decay!r}; it lies above 0 and up to 1")
        check_names("draft", cfg.draft, {field.name for field in fields(DraftConfig)} - _THE_TARGETS)

    def draft_config(self, cfg: "DictConfig", target: "PretrainedConfig") -> DraftConfig:
        return draft_config(cfg, target)

    def flags(self, drafts: Drafts) -> dict[str, str]:
        """The three numbers go together (SGLang takes all or none); with a top-k of 1 there is a token more."""
        if drafts == ADAPTIVE:
            return {**self.flags(_ADAPTS_FROM), "--speculative-adaptive": ""}
        return {
            "--speculative-algorithm": self.algorithm,
            "--speculative-num-steps": str(drafts),
            "--speculative-eagle-topk": "1",
            "--speculative-num-draft-tokens": str(drafts + 1),
        }

    def check_server(self, info: Json, drafts: Drafts, url: str) -> None:
        checks.check_server(info, drafts, url)

    def target_facts(self, target: "PretrainedConfig") -> Json:
        return {"feature_layers": list(layout.feature_layers(target.num_hidden_layers))}

    def check_config(self, path: Path, config: Json) -> None:
        checks.check_config(path, config)

    def check_target(self, path: Path, config: Json, target: Json) -> None:
        checks.check_target(path, config, target)

    def tensor_shapes(self, config: Json) -> dict[str, tuple[int, ...]]:
        return layout.weight_shapes(config)

    def check_tensors(self, path: Path, config: Json, tensors: dict[str, StoredTensor]) -> None:
        checks.check_vocabulary(path, tensors["d2t"].array(), tensors["t2d"].array())

    def norms(self, config: Json) -> tuple[str, ...]:
        return (*layout.norms(config), *layout.fc_norms(config))

    def describe(self, config: Json) -> Rows:
        norms = [name for name in ("fc_norm", "norm_output") if config.get(name)]
        return [
            ("layers", config["num_hidden_layers"]),
            *([("norms of EAGLE-3.1", " and ".join(norms))] if norms else []),
            ("draft vocabulary", f"{config['draft_vocab_size']:,} of {config['vocab_size']:,} tokens"),
            (
                "features",
                "outputs of the target's layers "
                + ", ".join(map(str, config["eagle_config"]["eagle_aux_hidden_state_layer_ids"])),
            ),
        ]

    def most_drafts(self, config: Json) -> int | None:
        return None  # a chain may be of any length

    def mask_token(self, config: Json) -> int | None:
        return None

    def as_served(self, config: Json, target: Json) -> Json:
        return published.as_served(config, self.architecture, target)

    def adopt(self, config: Json, tensors: "dict[str, torch.Tensor]") -> tuple[Json, "dict[str, torch.Tensor]"]:
        return published.adopt(config, tensors)

    def training(self, cfg: "DictConfig", target: "PretrainedConfig") -> Training:
        from spec.methods.eagle3.training import Eagle3Training

        return Eagle3Training(cfg, target)

    def read_draft(self, config: str) -> Any:
        from spec.methods.eagle3.draft import EagleDraft

        return EagleDraft(DraftConfig.from_json(config))

    def server_config(self, draft: Any, dtype: str, context_length: int) -> Json:
        from spec.methods.eagle3.export import sglang_config

        return sglang_config(draft.config, dtype, context_length)

    def trained_answer(self, draft: Any, dtype: "torch.dtype") -> "torch.Tensor":
        from spec.methods.eagle3.export import trained_answer

        return trained_answer(draft, dtype)

    def load(self, folder: Path, *, dtype: "torch.dtype", device: "torch.device | str" = "cpu") -> Drafter:
        from spec.methods.eagle3.inference import InferenceDraft

        return InferenceDraft.load(folder, dtype=dtype, device=device)
