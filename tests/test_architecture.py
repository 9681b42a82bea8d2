"""The diagram in the documentation matches the imports, which have no cycles."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

from tests.support.rooms import PAGE, arrows, redrawn

ROOT = Path(__file__).parents[1]


def test_the_picture_in_the_documentation_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == redrawn(page), "run: python -m tests.support.rooms"


def test_no_rooms_import_each_other_in_a_circle() -> None:
    order = list(graphlib.TopologicalSorter(arrows()).static_order())
    assert order.index("streaming") < order.index("voice") < order.index("link")


def test_every_room_is_described() -> None:
    page = PAGE.read_text(encoding="utf-8")
    missing = [room for room in arrows() if f"| `{room}/`" not in page]
    assert not missing, f"docs/architecture.md does not say what {missing} hold"


def test_every_class_has_a_name_of_its_own() -> None:
    places: dict[str, list[str]] = {}
    for folder in ("encodec_rt", "kernels", "benches"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert len(places) > 200
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}
