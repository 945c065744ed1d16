"""Whether this machine has what `compile: true` needs, asked before anything is loaded."""

import os
import shutil
import sysconfig
from pathlib import Path

import torch

from spec.errors import BadInput


def check_compiler(device: torch.device) -> None:
    """`BadInput` where there is no compiler: torch.compile would end the first step with a traceback.

    On a GPU Triton builds its launchers in C, on a CPU inductor writes C++; both take what `CC` or `CXX` names, else
    these, and Python's own headers.
    """
    variable, usual = ("CC", ("gcc", "clang")) if device.type == "cuda" else ("CXX", ("g++", "clang++"))
    named = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([named] if named else usual)):
        raise BadInput(
            f"config: compile=true needs a compiler, and there is no {named or ' or '.join(usual)} here: install one "
            f"(apt-get install g++), name yours in {variable}, or set compile=false"
        )
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise BadInput(
            f"config: compile=true needs Python's headers, and {headers}/Python.h is not there: install them "
            "(apt-get install python3-dev), or set compile=false"
        )
