"""How a training process is started and how it ends, for a run of one process and of many.

torch's launcher (`torchrun`, and `tune run` with processes) is a process of its own, and two things it does mislead
whoever runs this: it ends with 1 whatever its workers ended with, and `tune run` without a rendezvous endpoint drops
`--node-rank` and `--master-addr` without a word, so that every node waits alone. The launcher loads `watch_launcher` as
a plugin (entry point `torchrun.handlers` in pyproject.toml), which acts only where the recipe of this package is
launched: it gives `tune run` the endpoint that the flags say, and passes the workers' exit code on.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from spec import cli
from spec.errors import BadInput, PassingFault, SpecError, Stopped

RECIPE = "eagle_full_finetune_distributed"
_LAUNCHERS = ("tune", "torchrun", "torch/distributed/run.py")
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
GRACE = "600"  # seconds the launcher gives its workers to save after SIGTERM; torch's own default is 30


def run(recipe: Callable[[], Any]) -> None:
    """Run a worker's `recipe` and end the process: one line for an expected error, and its exit code.

    An error that all ranks agreed on is told by rank 0 alone.
    """
    _end_with_the_launcher()
    try:
        recipe()
    except Exception as error:
        expected = _expected(error)
        if expected is None:
            raise
        _let_the_first_tell(expected)
        _tell(expected)
        _end(expected.exit_code)
    _end(0)


def _end_with_the_launcher() -> None:
    """Have SIGTERM sent when torch's launcher dies, so that its ranks save and end.

    A launcher that is killed with SIGKILL cannot end them, and the same command started again would train beside them.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _expected(error: Exception) -> SpecError | None:
    """`error` as one line for the user, or None for what is a bug and keeps its traceback."""
    import torch
    import torch.distributed as dist

    if isinstance(error, SpecError):
        return error
    if isinstance(error, OSError):
        return cli.as_expected(error)
    line = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError):
        return _out_of_memory(f": {line}")
    if isinstance(error, dist.DistBackendError):
        return _of_nccl(line.rpartition("Last error:")[2].strip() or line)
    gone = ("Connection closed by peer", "Connection reset by peer", "gloo", "Timed out waiting")
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and any(sign in line for sign in gone)):
        return _passing(f"another rank is gone or silent ({line[:160]})")
    return None


def _of_nccl(said: str) -> SpecError:
    """Whatever fails in NCCL is one kind of error: a rank that is gone, a fabric that is not there, a full GPU."""
    if "out of memory" in said.lower():
        return _out_of_memory(f" in NCCL: {said}")
    others = ("remote", "peer", "timeout", "timed out", "closed", "abort")
    what = "another rank is gone or silent" if any(sign in said.lower() for sign in others) else "NCCL failed here"
    return _passing(f"{what} ({said[:200]}; NCCL_DEBUG=INFO says more)")


def _out_of_memory(said: str) -> BadInput:
    return BadInput(
        f"out of memory{said[:210]}; in this order, try activation_checkpointing=true, batch_size=1, "
        "target_shard=world, a shorter max_length, or more GPUs"
    )


def _passing(what: str) -> PassingFault:
    return PassingFault(f"{what}; start this again: it goes on from the newest checkpoint")


def _let_the_first_tell(error: SpecError) -> None:
    """Ranks that have not met cannot agree: a node's first one tells a mistake, then the launcher ends the others."""
    import torch.distributed as dist

    if isinstance(error, BadInput) and os.environ.get("LOCAL_RANK", "0") != "0" and not dist.is_initialized():
        time.sleep(60)  # it was not the first one's mistake, if this one is still here then


def _tell(error: SpecError) -> None:
    rank = int(os.environ.get("RANK", 0))
    if rank == 0:
        print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
    elif not error.agreed:
        print(f"error: rank {rank}: " + " ".join(str(error).split()), file=sys.stderr, flush=True)


def _end(code: int) -> None:
    """Leave at once where there are other ranks: a process group taken down in order waits for those that are gone.

    One that FSDP still holds has threads, which let go of tensors; if the interpreter ends meanwhile, torch aborts.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        os._exit(code)
    sys.exit(code)


def watch_launcher() -> Callable[..., Any]:
    """Called once in every process that imports torch's launcher; does nothing unless that launches our recipe."""
    if sys.argv[0].endswith(_LAUNCHERS) and any(RECIPE in argument for argument in sys.argv[1:]):
        try:
            meet(sys.argv, os.environ)
        except BadInput as error:
            cli.fail(str(error), error.exit_code)
        os.environ.setdefault("PET_SHUTDOWN_TIMEOUT", GRACE)
        sys.excepthook = _end_as_workers
    return _no_rendezvous


def meet(argv: Sequence[str], environ: MutableMapping[str, str]) -> None:
    """Let the nodes of a launch find each other, or `BadInput` before one of them waits for the rest.

    `tune run` goes alone unless it is told a rendezvous endpoint, and torch reads its flags' defaults from `environ`
    after this. The backend stays what it is: with `static` the node rank counts, and the endpoint is the first node's.
    """
    own = next(index for index, argument in enumerate(argv) if RECIPE in argument)
    flags = _flags(argv[1:own])
    nodes = flags.get("nnodes", environ.get("PET_NNODES", "1"))
    if nodes in ("1", "1:1"):
        return
    if missing := _missing(argv[own:]):
        raise BadInput(f"config: {missing} is not set; add {missing}=... to the command of every node")
    if os.path.basename(argv[0]) != "tune" or flags.get("rdzv-endpoint") or environ.get("PET_RDZV_ENDPOINT"):
        return
    host = flags.get("master-addr", environ.get("PET_MASTER_ADDR"))
    if not host:
        raise BadInput(
            f"{nodes} nodes and no address to meet at, so each would wait for itself; run this on every node, with a "
            f"node rank of its own: tune run --nproc-per-node "
            f"{flags.get('nproc-per-node', environ.get('PET_NPROC_PER_NODE', '8'))} --nnodes {nodes} --node-rank 0 "
            f"--master-addr FIRST_NODE --master-port 29500 {' '.join(argv[own:])}"
        )
    port = flags.get("master-port", environ.get("PET_MASTER_PORT", "29500"))
    environ["PET_RDZV_ENDPOINT"] = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _missing(words: Sequence[str]) -> str | None:
    """The first of run_dir and target that neither `words` (the recipe's own) nor the file of --config sets."""
    given = {word.partition("=")[0] for word in words if "=" in word and not word.startswith("--")}
    with suppress(ValueError, IndexError, OSError, TypeError, yaml.YAMLError):  # the recipe says what is wrong with it
        given |= set(yaml.safe_load(Path(words[words.index("--config") + 1]).read_bytes()))
    return next((name for name in ("run_dir", "target") if name not in given), None)


def _flags(arguments: Sequence[str]) -> dict[str, str]:
    """`--a-b=c`, `--a_b c` -> {"a-b": "c"}."""
    flags = {}
    for index, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, given, value = argument[2:].partition("=")
            following = arguments[index + 1] if index + 1 < len(arguments) else ""
            flags[name.replace("_", "-")] = value if given else following
    return flags


def _end_as_workers(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The launcher's excepthook: end with what the workers ended with, in one line instead of two tracebacks."""
    if kind.__name__ == "SignalException":  # by name: torch is still being imported when this is set
        _leave("", Stopped.exit_code)
    if kind is ValueError:  # what torch raises for a flag that makes no sense
        _leave(f"the launcher's flags: {' '.join(str(error).split())}", BadInput.exit_code)
    bases = {base.__name__ for base in kind.__mro__}
    if "DistError" in bases:  # of the store that the nodes of a static rendezvous meet in
        _leave(*_not_met(" ".join(str(error).split())))
    if "RendezvousError" in bases:
        _leave(
            f"the nodes did not meet, or one has left ({str(error) or kind.__name__}): check that the endpoint is the "
            "same on every node (--rdzv-endpoint), and start this again on all of them",
            PassingFault.exit_code,
        )
    if kind.__name__ != "ChildFailedError":
        return sys.__excepthook__(kind, error, trace)
    codes = {failure.exitcode for failure in getattr(error, "failures", {}).values()}
    for code in (BadInput.exit_code, Stopped.exit_code, PassingFault.exit_code):
        if code in codes:
            _leave("", code)
    if any(code < 0 for code in codes):
        _leave("a rank was killed; start this again: it goes on from the newest checkpoint", PassingFault.exit_code)
    _leave("a rank failed; its traceback is above", 1)


def _not_met(said: str) -> tuple[str, int]:
    """One line and an exit code for what the store `said`: all nodes are there once their ranks are compared."""
    if "torchelastic/" in said and "timeout" in said:
        return (
            "as many nodes as --nnodes came, and a rank is missing: two nodes have the same --node-rank; number them "
            "from 0, and start this again on all of them",
            BadInput.exit_code,
        )
    return (
        f"the nodes did not meet, or one has left ({said[:160]}): check that --nnodes, --master-addr and --master-port "
        "are the same on every node and that the node of rank 0 is there, and start this again on all of them",
        PassingFault.exit_code,
    )


def _leave(message: str, code: int) -> None:
    if message:
        print(f"error: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # an excepthook's return would make it 1


def _no_rendezvous(*_: Any) -> None:
    raise BadInput("sgl-spec is no rendezvous backend: use c10d")
