"""The CPU server's processes are copies of the one that imported SGLang, whatever SGLang asks for."""

import subprocess
import sys
from pathlib import Path

SHIM = Path(__file__).parents[3] / "images/server-cpu/shim"


def test_what_sglang_would_spawn_is_forked():
    code = (
        f"import sys; sys.path.insert(0, {str(SHIM)!r})\n"
        "import multiprocessing as mp; from sglang_on_cpu import fixes\n"
        "class Engine: mp = mp\n"
        "fixes.fork_rather_than_import_again(Engine)\n"
        "mp.set_start_method('spawn', force=True); print(mp.get_start_method())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "fork"
