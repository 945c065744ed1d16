"""How a run over several nodes is started: what would run alone without a word meets, or is stopped."""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
import torch

from spec import launch, ranks
from spec.errors import BadInput, PassingFault
from spec.launch import meet
from tests.prepared import prepared_run
from tests.tiny_models import save_tiny_target
from tests.training_runs import TINY

ROOT = Path(__file__).parents[3]
TUNE = str(Path(sys.executable).with_name("tune"))
RECIPE = "spec/eagle_full_finetune_distributed.py"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
OWN = [RECIPE, "--config", "c.yaml", "run_dir=RUN", "target=DIR"]


@pytest.mark.parametrize(
    "flags",
    [
        "--nnodes 2 --nproc_per_node 8 --node_rank 1 --master_addr host-1 --master_port 1234",
        "--nnodes=2 --nproc-per-node=8 --node-rank=0 --master-addr=host-1 --master-port=1234",
    ],
)
def test_the_known_form_meets_at_the_first_node(flags):
    environ: dict[str, str] = {}
    meet([TUNE, "run", *flags.split(), *OWN], environ)
    assert environ == {"PET_RDZV_ENDPOINT": "host-1:1234"}


def test_the_address_may_be_of_ipv6_or_come_from_the_environment():
    environ = {"PET_NNODES": "2", "PET_MASTER_ADDR": "fd00::1"}
    meet([TUNE, "run", "--nproc_per_node", "8", *OWN], environ)
    assert environ["PET_RDZV_ENDPOINT"] == "[fd00::1]:29500"


@pytest.mark.parametrize(("flags", "environ"), [("--nnodes 2", {}), ("--nproc_per_node 8", {"PET_NNODES": "2"})])
def test_nodes_without_an_address_are_refused_with_the_command_that_works(flags, environ):
    with pytest.raises(BadInput) as error:
        meet([TUNE, "run", *flags.split(), *OWN], environ)
    assert "--nproc-per-node 8 --nnodes 2 --node-rank 0 --master-addr FIRST_NODE --master-port 29500" in str(
        error.value
    )
    assert str(error.value).endswith(" ".join(OWN))


@pytest.mark.parametrize("missing", ["run_dir", "target"])
@pytest.mark.parametrize("launcher", [TUNE, "/bin/torchrun"])
def test_a_node_that_lacks_a_path_says_so_before_it_meets_another(launcher, missing):
    words = [word for word in OWN if not word.startswith(missing)]
    with pytest.raises(BadInput, match=f"config: {missing} is not set"):
        meet([launcher, "run", "--nnodes", "2", "--master_addr", "host-1", *words], {})


def test_the_paths_may_stand_in_the_config(tmp_path):
    (tmp_path / "c.yaml").write_text("run_dir: RUN\ntarget: DIR\n")
    command = [RECIPE, "--config", str(tmp_path / "c.yaml")]
    meet([TUNE, "run", "--nnodes", "2", "--master_addr", "host-1", *command], environ := {})
    assert environ["PET_RDZV_ENDPOINT"] == "host-1:29500"


@pytest.mark.parametrize(
    ("launcher", "flags", "environ"),
    [
        (TUNE, "--nproc_per_node 8", {}),
        (TUNE, "--nnodes 1 --nproc_per_node 8 --master_addr host-1", {}),
        (TUNE, "--nnodes 2 --rdzv_backend c10d --rdzv_endpoint host-1:29500", {}),
        (TUNE, "--nnodes 2", {"PET_RDZV_ENDPOINT": "host-1:29500"}),
        ("/bin/torchrun", "--nnodes 2 --node_rank 1 --master_addr host-1", {}),  # torchrun reads them
    ],
)
def test_what_meets_by_itself_is_left_as_it_is(launcher, flags, environ):
    before = dict(environ)
    meet([launcher, "run", *flags.split(), *OWN], environ)
    assert environ == before


def test_a_lone_process_among_pet_variables_is_refused(monkeypatch):
    """`tune run` without any flag does not read them."""
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PET_NNODES", "2")
    with pytest.raises(BadInput, match="start it with torchrun"):
        ranks.start("cpu")


@pytest.mark.parametrize("device", [None, "cuda"])
def test_a_gpu_that_torch_cannot_use_is_refused_and_not_trained_beside_on_the_cpu(monkeypatch, device):
    for name in ("RANK", "WORLD_SIZE", "PET_NNODES", "PET_NPROC_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)  # as NVML says, whatever the driver can do
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match=r"cannot use a GPU of this node \(8 are seen\)"):
        ranks.start(device)


def nccl(last):
    return f"NCCL error in: ../NCCL.cpp:77, unhandled system error, run with NCCL_DEBUG=INFO\nLast error:\n{last}"


@pytest.mark.parametrize(
    ("last", "kind", "told"),
    [
        (
            "Failed to CUDA calloc async 608 bytes: Cuda failure 2 'out of memory'",
            BadInput,
            "out of memory in NCCL: Fail",
        ),
        (
            "socketStartConnect: Connect to 10.0.0.1<4500> failed : Connection closed by remote peer",
            PassingFault,
            "gone",
        ),
        ("NET/IB : No device found.", PassingFault, r"NCCL failed here \(NET/IB : No device found\."),
        ("Error while creating shared memory segment /dev/shm/nccl-x (size 9637888)", PassingFault, "NCCL failed here"),
    ],
)
def test_what_failed_in_nccl_is_told_by_its_own_last_error(last, kind, told):
    found = launch._expected(torch.distributed.DistBackendError(nccl(last)))
    assert type(found) is kind
    with pytest.raises(kind, match=told):
        raise found


@pytest.mark.parametrize(
    "flags", ["--nproc_per_node x", "--nproc_per_node 1 --rdzv_backend none-such --rdzv_endpoint localhost:1"]
)
def test_a_flag_that_makes_no_sense_is_told_in_one_line(flags, tmp_path):
    code, said = ended(*begun(tmp_path, *flags.split(), *OWN))
    assert code == 2
    assert said.count("error: ") == 1 and "the launcher's flags" in said and "Traceback" not in said


def test_nodes_that_do_not_meet_are_told_in_one_line(tmp_path):
    meeting = "--rdzv_backend c10d --rdzv_id draft --rdzv_conf is_host=0,read_timeout=2 --rdzv_endpoint localhost:1"
    code, said = ended(*begun(tmp_path, "--nnodes", "2", "--nproc_per_node", "1", *meeting.split(), *OWN))
    assert code == 75
    assert said.count("error: ") == 1 and "--rdzv-endpoint" in said and "Traceback" not in said


def test_a_mistake_of_all_ranks_is_told_once_before_they_have_met(tmp_path):
    words = ["--nproc_per_node", "2", RECIPE, "--config", "nowhere.yaml", "run_dir=RUN", "target=DIR"]
    code, said = ended(*begun(tmp_path, *words))
    assert code == 2
    assert said.count("error: ") == 1 and "no such file" in said and "Traceback" not in said


@pytest.mark.timeout(600)
def test_two_launchers_meet_and_train_together(tmp_path):
    """Two nodes of one process each, on loopback, by the README's command; and their exit codes."""
    run, recipe = tiny_run(tmp_path, "max_steps=2")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    meeting = ["--rdzv_backend", "c10d", "--rdzv_id", "draft", "--rdzv_endpoint", f"localhost:{port}"]
    words = [TUNE, "run", "--nnodes", "2", "--nproc_per_node", "1", *meeting, *recipe]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PET_")} | ENVIRONMENT
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    nodes = [subprocess.Popen(words, cwd=ROOT, env=environment, **pipes) for _ in range(2)]
    try:
        said = [node.communicate(timeout=500) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], said
    assert '"ranks": 2' in (run / "checkpoints/step-000002/checkpoint.json").read_text()


@pytest.mark.timeout(600)
def test_ranks_whose_launcher_is_killed_save_and_end(tmp_path):
    """They must not train beside those of the same command started again."""
    run, recipe = tiny_run(tmp_path, "epochs=10000", "save_every=1000000")
    node, said = begun(tmp_path, "--nproc_per_node", "2", *recipe)
    try:
        while node.is_alive() and not (run / "checkpoints/metrics.jsonl").is_file():
            time.sleep(0.05)
        assert node.is_alive(), said.read_text()
        ranks_of_it = psutil.Process(node.pid).children()
        assert len(ranks_of_it) == 2
        assert not list(run.glob("checkpoints/step-*"))
    finally:
        node.kill()
    _, alive = psutil.wait_procs(ranks_of_it, timeout=120)
    for rank in alive:
        rank.kill()
    assert not alive
    assert len(list(run.glob("checkpoints/step-*/checkpoint.json"))) == 1


def tiny_run(folder: Path, *settings: str) -> tuple[Path, list[str]]:
    """A prepared run, and the recipe's part of the command that trains on it."""
    target = save_tiny_target("llama", folder / "target")
    run = prepared_run(folder / "run", documents=8)
    config = folder / "config.yaml"
    lines = [f"{name}: {value}" for name, value in TINY.items() if isinstance(value, int | float | str)]
    config.write_text("\n".join([*lines, "lr_scheduler: {num_warmup_steps: 2}"]))
    return run, [RECIPE, "--config", str(config), f"run_dir={run}", f"target={target}", *settings]


def begun(folder: Path, *words: str) -> tuple[BaseProcess, Path]:
    """`tune run WORDS` in a fork, without the seconds of its imports; and the file of what it says on stderr."""
    said = folder / "said"
    node = multiprocessing.get_context("fork").Process(target=_tune, args=(words, said))
    node.start()
    return node, said


def ended(node: BaseProcess, said: Path) -> tuple[int | None, str]:
    """Its exit code, and what it has said."""
    node.join(300)
    node.kill()
    return node.exitcode, said.read_text()


def _tune(words: tuple[str, ...], said: Path) -> None:
    """As the interpreter: torch's launcher is imported anew, which loads what watches it, and its hook is asked."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    for name in [its for its in sys.modules if its.startswith(("torch.distributed.elastic", "torch.distributed.run"))]:
        del sys.modules[name]
    for name in [its for its in os.environ if its.startswith("PET_")]:
        del os.environ[name]
    os.environ.update(ENVIRONMENT)
    os.chdir(ROOT)
    sys.argv = [TUNE, "run", *words]
    try:
        runpy.run_path(TUNE, run_name="__main__")
    except Exception:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
