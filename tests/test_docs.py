"""The examples of the documentation run as they stand, in any folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import soundfile

import encodec_rt

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = [
    pytest.param(code, id=f"{page.stem}-{index}")
    for page in PAGES
    for index, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {})
    for written in tmp_path.glob("*.wav"):
        assert soundfile.info(written).frames > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_public_name_and_every_error_is_on_the_api_page() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    names = [name for name in encodec_rt.__all__ if not name.startswith("__")]
    names += [name for name, kind in vars(encodec_rt.errors).items() if isinstance(kind, type)]
    assert not [name for name in names if f"`{name}`" not in page]
