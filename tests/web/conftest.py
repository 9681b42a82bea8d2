"""What the tests of the page's modules share."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "encodec_rt" / "web" / "page"


@pytest.fixture
def node(tmp_path: Path) -> Any:
    """Runs one of the harness's tasks."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("no node here (Debian: nodejs)")

    def run(task: str, **given: Any) -> Any:
        file = tmp_path / "task.json"
        file.write_text(json.dumps({"task": task, **given}))
        command = [found, str(Path(__file__).with_name("harness.mjs")), str(PAGE), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
