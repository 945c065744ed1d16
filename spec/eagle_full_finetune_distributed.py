"""Trains a draft against a frozen target: a torchtune recipe, for one process or many nodes and for every method.

    tune run --nproc_per_node 8 spec/eagle_full_finetune_distributed.py --config spec/configs/llama3/8B_eagle.yaml \\
        run_dir=RUN target=DIR

It reads RUN/samples, which prepare_data.py wrote, and writes RUN/checkpoints. Started again, it goes on from the newest
complete checkpoint; finished, it says so and ends with 0. On SIGTERM it saves and ends with 143.
"""

from contextlib import ExitStack, nullcontext
from time import perf_counter, process_time
from typing import Any

import torch
from omegaconf import DictConfig
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torchtune import config
from torchtune.recipe_interfaces import FTRecipeInterface
from torchtune.training import get_lr

from spec import components, launch, ranks, settings, warm_start
from spec.attention import kernels
from spec.costs.budget import Cap
from spec.costs.meter import Meter, gpus_of
from spec.errors import SpecError, Stopped
from spec.methods import METHODS
from spec.methods.config import check_heads
from spec.progress import Wait
from spec.storage import Store
from spec.storage.markers import Marker
from spec.target.frozen import FrozenTarget
from spec.training import estimate
from spec.training.batch import Batch
from spec.training.checkpoints import Checkpoints, Progress
from spec.training.compiler import check_compiler
from spec.training.feature_cache import FeatureCache
from spec.training.gradients import Gradients, make_optimizer
from spec.training.inputs import held_out_loader, open_inputs, train_loader
from spec.training.metrics import Metrics, Sums, Window
from spec.training.shutdown import Shutdown

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class EagleFullFinetuneRecipeDistributed(FTRecipeInterface):
    """One training run: `setup` builds or resumes it, `train` takes it to its end, `cleanup` lets go of it."""

    def __init__(self, cfg: DictConfig):
        self.ranks = ranks.start(cfg.get("device"), cfg.get("timeout_minutes", 10))
        self.cfg = ranks.together(lambda: components.check(settings.complete(cfg)))
        self.device = self.ranks.device
        self.shutdown = Shutdown()
        self.progress = Progress()
        self.metrics: Metrics | None = None  # rank 0's
        self.features: FeatureCache | None = None
        self.judged: dict[str, float] = {}  # what the last evaluation estimates; of the step that was taken then alone
        self.finished = False
        self.step_seconds = self.save_seconds = 0.0  # what one takes
        self.costs = ExitStack()  # counts them until it is closed

    def setup(self) -> None:
        """Check every input, then allocate: a mistake must not cost the minutes that a large target takes to load."""
        cfg = self.cfg
        ranks.together(kernels.check)
        if cfg.compile:
            ranks.together(lambda: check_compiler(self.device))
        self.inputs = open_inputs(cfg, self.ranks)
        self.method = ranks.together(lambda: METHODS[cfg.method].training(cfg, self.inputs.target))
        if self.device.type == "cuda":
            ranks.together(lambda: check_heads(self.method.config, self.inputs.target, cfg))
        self.start, told = warm_start.open_start(cfg, self.inputs, self.ranks, self.method)
        self._say(told)
        self._say(ranks.together(self._read_samples))
        self.window = Window(self.method.positions, self.device)
        self.train_data = ranks.together(lambda: train_loader(cfg, self.inputs, self.ranks, self.method.prepare))
        self.held_out_data = ranks.together(lambda: held_out_loader(cfg, self.inputs, self.ranks, self.method.prepare))
        store = self.inputs.store.at("checkpoints")
        self.checkpoints = Checkpoints(
            store,
            self.inputs.scratch,
            self.ranks,
            settings=settings.deciding(cfg),
            inputs=self.inputs.identity | warm_start.identity(self.start),
            keep=cfg.keep_checkpoints,
        )
        newest = self.checkpoints.newest(overwrite=cfg.overwrite)
        self.finished = newest is not None and newest[1].facts["finished"]
        if newest and self.finished:
            return self._say(f"training is already done: {store.url}/{newest[0]}")
        if newest:
            self.progress = Progress.of(newest[1])
        self._count_costs()
        self.total_steps = self._count_steps()
        ranks.together(lambda: settings.check_warmup(cfg, self.total_steps))

        with Wait("the target, read from disk") if self.ranks.rank == 0 else nullcontext():
            self.target = FrozenTarget.load(
                cfg.target, dtype=DTYPES[cfg.target_dtype], device=self.device, shard=cfg.target_shard
            )
        self.features = FeatureCache(self.method.look, self.inputs.scratch, self.ranks) if cfg.cache_features else None
        self.draft: Any = self._setup_draft()  # the method's, which fully_shard made an FSDPModule as well
        self.optimizer = make_optimizer(cfg.optimizer, self.draft.parameters(), self.device)
        self.gradients = Gradients(self.draft, self.optimizer, cfg.clip_grad_norm, self.device)
        self.scheduler = config.instantiate(cfg.lr_scheduler, self.optimizer, num_training_steps=self.total_steps)
        if newest:
            self.load_checkpoint(*newest)
        if self.ranks.rank == 0:
            self.metrics = self._setup_metrics(store)

    def train(self) -> None:
        """Optimizer steps up to the last one, with evaluations and checkpoints on the way."""
        if self.finished:
            return
        cfg, progress = self.cfg, self.progress
        began, first = perf_counter(), progress.step
        log_every = cfg.log_every or (10 if self.device.type == "cuda" else 1)
        while True:
            for batches in self.train_data.epoch(progress.epoch, progress.bins_done):
                stop = self.train_step(batches)
                self.step_seconds = (perf_counter() - began) / (progress.step - first)
                self.finished = progress.step == self.total_steps
                evaluates = cfg.evaluate_every and (progress.step % cfg.evaluate_every == 0 or self.finished)
                saves = progress.step % cfg.save_every == 0 or self.finished or stop
                if progress.step % log_every == 0 or evaluates or saves:
                    self._log()
                if evaluates:
                    self.evaluate()
                if saves:
                    self.save_checkpoint()
                if self.finished:
                    return
                if stop:
                    raise self._stopped()
            progress.epoch, progress.bins_done = progress.epoch + 1, 0

    def train_step(self, batches: list[Batch]) -> bool:
        """One optimizer step over this rank's `batches`; whether any rank was asked to stop, or another step and a
        checkpoint would take the run past its cap of GPU-hours, as rank 0's clock has it.

        At each draft position the loss is the mean over the loss-bearing rows of all ranks, however unevenly these hold
        them: the counts are added up before the first backward, and gradients are summed, not averaged.

        On a GPU it only hands over work: what becomes of it is read by `_log`.
        """
        began, cpu_began, data, window = perf_counter(), process_time(), self.train_data, self.window
        tokens = sum(sum(batch.documents.lengths) for batch in batches)
        loss_tokens = sum(batch.loss_tokens for batch in batches)
        over = self.ranks.rank == 0 and self.cap.would_pass(self.step_seconds + self.save_seconds)
        of_all_ranks = ranks.HostTotal(tokens, loss_tokens, self.shutdown.requested, over)
        self.draft.unshard(async_op=True)  # its gather passes while the target looks
        seen = [self._observe(batch, self.progress.epoch) for batch in batches]
        counts = ranks.total(torch.stack([observation.count for observation in seen]).sum(0))  # [P]
        weights = self.method.weights(counts)
        row_weights = []
        for index, observation in enumerate(seen):
            self.draft.set_requires_gradient_sync(index == len(seen) - 1)
            result = self.method.loss(self.draft, observation, weights)
            result.loss.backward()
            window.sums.add(result)
            if result.weight is not None:
                row_weights.append(result.weight)
        if row_weights:
            self._divide_gradients(ranks.total(torch.stack(row_weights).sum()))
        lr, grad_norm = get_lr(self.optimizer), self.gradients.clip(self.progress.step + 1)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()

        tokens, loss_tokens, stop, self.over_cap = of_all_ranks.wait()
        self.judged = {}
        self.progress.step += 1
        self.progress.bins_done = min(self.progress.bins_done + data.bins_a_step, len(data.bins))
        self.progress.tokens_seen += tokens
        spent = {"seconds": perf_counter() - began, "cpu_seconds": process_time() - cpu_began, "waited": data.waited}
        window.add(tokens=tokens, loss_tokens=loss_tokens, lr=lr, grad_norm=grad_norm, **spent)
        return stop + self.over_cap > 0

    @torch.no_grad()
    def evaluate(self) -> None:
        """Loss and accuracy by draft position on the held-out rows, and what accept length that makes likely."""
        sums = Sums(self.method.positions, self.device)
        for (batch,) in self.held_out_data.epoch(0):
            seen = self._observe(batch, None)
            sums.add(self.method.loss(self.draft, seen, self.method.weights(seen.count)))
        self.draft.reshard()
        means = sums.means(self.method.mean_loss)
        self.judged = {estimate.KEY: estimate.accept_length(means["accuracy_by_position"])}
        if self.metrics:
            self.metrics.log(self.progress.step, {"held_out": means | self.judged})

    def save_checkpoint(self) -> None:
        began = perf_counter()
        if self.metrics:
            self.metrics.publish()
        facts = {"finished": self.finished} | warm_start.facts(self.start) | (self.judged if self.cfg.keep_best else {})
        self.checkpoints.save(self.progress, self._state(), self.method.config.to_json(), facts)
        self.save_seconds = perf_counter() - began

    def load_checkpoint(self, name: str, marker: Marker) -> None:
        state = self._state()
        self.checkpoints.load(name, marker, state)
        set_state_dict(self.draft, self.optimizer, model_state_dict=state["draft"], optim_state_dict=state["optimizer"])
        self.scheduler.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        self._say(f"going on from {name} of {self.total_steps} steps")

    def cleanup(self) -> None:
        if self.metrics:
            self.metrics.close()
        self.shutdown.close()
        torch.distributed.destroy_process_group()

    def _count_costs(self) -> None:
        """One process of a node tells what the node costs; how near the cap is, rank 0's clock says."""
        own, store = self.ranks, self.inputs.store
        self.cap = ranks.first_decides(lambda: Cap.of(store, own.world if own.device.type == "cuda" else 0))
        ranks.together(self._check_cap)
        if own.local_rank == 0:
            self.costs.enter_context(Meter(store, "train", **gpus_of(own.device.type, count=own.local_world)))

    def _check_cap(self) -> None:
        if self.cap.would_pass():
            raise self.cap.refusal("training begins no further step")

    def _stopped(self) -> SpecError:
        saved = f"saved step {self.progress.step} of {self.total_steps}"
        if not self.over_cap:
            return Stopped(f"SIGTERM: {saved}; the same command goes on")
        error = self.cap.refusal(saved)
        error.agreed = True
        return error

    def _read_samples(self) -> str:
        return self.method.read_samples(self.inputs.samples, f"{self.inputs.store.url}/samples")

    def _setup_draft(self) -> Any:
        """The draft, begun alike on every rank, then split over all of them (FSDP2), weights in fp32."""
        torch.manual_seed(self.cfg.seed)
        draft = self.method.build(self.device)
        self.method.initialise(draft, self.target)
        compute = DTYPES[self.cfg.dtype]
        policy = MixedPrecisionPolicy(compute, torch.float32, cast_forward_inputs=False)
        mesh = init_device_mesh(self.device.type, (self.ranks.world,))  # by itself it would take any GPU there is
        fully_shard(draft, mesh=mesh, mp_policy=policy)
        kernels.sum_gradients(draft)  # the loss is normalised over all ranks already
        self.method.share_target(draft, self.target)
        return draft

    def _setup_metrics(self, store: Store) -> Metrics:
        cfg, scratch = self.cfg.metric_logger, self.inputs.scratch
        if cfg is not None and "log_dir" in cfg and cfg.log_dir is None:
            cfg.log_dir = str((self.inputs.store.local_path() or scratch) / "logs")
        logger = config.instantiate(cfg)
        return Metrics(store, scratch, logger, step=self.progress.step, steps=self.total_steps)

    def _count_steps(self) -> int:
        """Optimizer steps of the whole run. On other ranks than before, what is left is counted in their steps."""
        cfg, progress, data = self.cfg, self.progress, self.train_data
        if cfg.epochs is None:
            return cfg.max_steps
        later = (cfg.epochs - progress.epoch - 1) * data.steps_from(0)
        steps = progress.step + data.steps_from(progress.bins_done) + later
        return min(steps, cfg.max_steps or steps)

    def _observe(self, batch: Batch, epoch: int | None) -> Any:
        """What the draft trains on of a batch in `epoch`; the target looks at it then or, cached, in the first one."""
        look = self.features.look if self.features else self.method.look
        return self.method.observe(self.draft, look(self.draft, self.target, batch), batch, epoch)

    def _divide_gradients(self, weight: torch.Tensor) -> None:
        """By the sum of all rows' weights `[]`, where that was not known before the step."""
        gradients = [p.grad for p in self.draft.parameters() if p.grad is not None]
        own = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in gradients]
        torch._foreach_div_(own, weight.clamp(min=torch.finfo(weight.dtype).tiny))

    def _state(self) -> dict[str, Any]:
        """Everything that a resumed run needs; tensors are this rank's parts."""
        draft, optimizer = get_state_dict(self.draft, self.optimizer)
        return {
            "draft": draft,
            "optimizer": optimizer,
            "schedule": self.scheduler.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def _log(self) -> None:
        """The one place where a step waits for its device."""
        row = self.window.flush(self.method.mean_loss)
        self.gradients.check()
        if self.metrics:
            self.metrics.log(
                self.progress.step, {"epoch": self.progress.epoch} | row | {"tokens_seen": self.progress.tokens_seen}
            )

    def _say(self, text: str) -> None:
        if not text:
            return
        if self.metrics:
            self.metrics.say(text)
        elif self.ranks.rank == 0:
            print(text, flush=True)


def recipe_main(cfg: DictConfig) -> None:
    recipe = EagleFullFinetuneRecipeDistributed(cfg)
    with recipe.costs:
        recipe.setup()
        recipe.train()
        recipe.cleanup()


if __name__ == "__main__":
    launch.run(lambda: recipe_main(components.from_command_line()))
