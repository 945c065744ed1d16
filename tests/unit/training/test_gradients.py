"""A gradient that is not finite ends a run and changes no draft; a compiler is asked for before it is needed."""

import pytest
import torch
from omegaconf import OmegaConf

from spec.errors import BadInput
from spec.training.compiler import check_compiler
from spec.training.gradients import Gradients, make_optimizer

CPU = torch.device("cpu")


def steps(fused, values):
    """Optimizer steps with these gradients; the weights after each, and the gradients' keeper."""
    draft = torch.nn.Linear(3, 1, bias=False)
    cfg = OmegaConf.create({"_component_": "torch.optim.AdamW", "lr": 0.1, "fused": fused})
    optimizer = make_optimizer(cfg, draft.parameters(), CPU)
    gradients, weights = Gradients(draft, optimizer, 0.5, CPU), [draft.weight.detach().clone()]
    for step, value in enumerate(values, 1):
        draft.weight.grad = torch.full_like(draft.weight, value)
        gradients.clip(step)
        optimizer.step()
        weights.append(draft.weight.detach().clone())
    return weights, gradients


def test_after_a_broken_gradient_no_update_changes_the_draft_and_the_run_ends_when_it_is_asked():
    weights, gradients = steps(True, [1.0, float("nan"), 1.0, float("inf"), 1.0])
    assert not torch.equal(weights[0], weights[1])
    assert all(torch.equal(its, weights[1]) for its in weights[2:])
    with pytest.raises(BadInput, match="step 2: the gradient is nan: lower optimizer.lr"):
        gradients.check()


def test_where_the_optimizer_cannot_skip_the_host_looks_before_it_updates():
    with pytest.raises(BadInput, match="step 2: the gradient is inf"):
        steps(False, [1.0, float("inf")])


@pytest.mark.parametrize("fused", [True, False])
def test_finite_gradients_pass(fused):
    weights, gradients = steps(fused, [1.0, 2.0])
    gradients.check()
    assert not torch.equal(weights[1], weights[2])


@pytest.mark.parametrize(("device", "named"), [("cuda", "gcc or clang"), ("cpu", r"g\+\+ or clang\+\+")])
def test_compiling_without_a_compiler_is_refused(tmp_path, monkeypatch, device, named):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BadInput, match=f"compile=true needs a compiler, and there is no {named} here"):
        check_compiler(torch.device(device))
    (tmp_path / "mycc").touch(mode=0o755)
    for name in ("CC", "CXX"):
        monkeypatch.setenv(name, "mycc")
    check_compiler(torch.device(device))


def test_compiling_without_pythons_headers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "sh")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(BadInput, match="compile=true needs Python's headers"):
        check_compiler(torch.device("cuda"))
    (tmp_path / "Python.h").touch()
    check_compiler(torch.device("cuda"))
