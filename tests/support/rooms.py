"""The subpackages and the dependencies between them, for the diagram in docs/architecture.md.

``python -m tests.support.rooms`` redraws the diagram there.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
_BLOCK = re.compile(r"<!-- picture -->\n.*?<!-- end -->", re.DOTALL)


def arrows(package: Path = ROOT / "encodec_rt") -> dict[str, set[str]]:
    """For each subpackage, the other subpackages that it imports from."""
    rooms = {path.parent.name for path in package.glob("*/*.py")}
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for path in package.glob("*/**/*.py"):
        own = path.relative_to(package).parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
            for name in names:
                top, _, rest = name.partition(".")
                room = rest.partition(".")[0]
                if top == package.name and room in rooms and room != own and own in rooms:
                    found[own].add(room)
    return found


def picture() -> str:
    """The part of the page that is generated from the imports."""
    found = arrows()
    count = sum(map(len, found.values()))
    lines = [f"    {room} --> {other}" for room in sorted(found) for other in sorted(found[room])]
    alone = [f"    {room}" for room in sorted(found) if not any(room in o for o in found.values())]
    alone = [line for line in alone if not found[line.strip()]]
    return "\n".join(
        [
            "<!-- picture -->",
            f"{len(found)} subpackages, {count} dependencies, no cycles:",
            "",
            "```mermaid",
            "flowchart TD",
            *lines,
            *alone,
            "```",
            "<!-- end -->",
        ]
    )


def redrawn(page: str) -> str:
    """``page`` with the current diagram."""
    assert _BLOCK.search(page), "the page has no markers for the diagram"
    return _BLOCK.sub(lambda _: picture(), page)


if __name__ == "__main__":
    PAGE.write_text(redrawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
