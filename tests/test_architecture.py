"""The picture of the rooms is that of the code, and has no circle."""

from __future__ import annotations

import graphlib

from tests.support.rooms import PAGE, arrows, redrawn


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
