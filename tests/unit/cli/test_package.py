"""What `pip install .` carries: everything that the code reads beside itself."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_file_beside_the_code_is_package_data():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["spec"]
    carried = {path for pattern in patterns for path in (ROOT / "spec").glob(pattern)}
    beside = {path for path in (ROOT / "spec").rglob("*.*") if path.suffix not in (".py", ".pyc")}
    assert beside and not beside - carried
