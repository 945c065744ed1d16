import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SHIM = Path(__file__).parents[3] / "images/server-cpu/shim"


@pytest.fixture
def of_shim() -> Callable[[str], ModuleType]:
    """Loads a file of the CPU server by its path, which is no package here, with nothing remembered of other tests."""

    def load(path: str) -> ModuleType:
        found = importlib.util.spec_from_file_location(Path(path).stem, SHIM / path)
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        return module

    return load
