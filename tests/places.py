"""The three kinds of place to publish at, as a fixture; imported by the conftest.py of the folders that need it."""

from pathlib import Path

import pytest


@pytest.fixture(params=["directory", "s3", "hub"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "directory":
        return str(tmp_path / "published")
    if request.param == "s3":
        return f"s3://{request.getfixturevalue('bucket')}/drafts"
    request.getfixturevalue("hub")
    return "hf://ORG/NAME"
