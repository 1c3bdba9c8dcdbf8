"""Keep the picture of the rooms in docs/contributing/architecture.md true: who imports whom.

uv run python docs/rooms.py            # draw it anew
uv run python docs/rooms.py --check    # exit code 1 where it is not today's
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import grimp

PAGE = Path(__file__).parent / "contributing" / "architecture.md"
BEGIN, END = "<!-- rooms: written by docs/rooms.py -->\n", "<!-- /rooms -->"


def picture() -> str:
    """Return a Mermaid flowchart: a box for each room, an arrow where one imports another and no room between does."""
    graph = grimp.build_graph("robustdup", include_external_packages=False)
    room_of = {module: module.split(".")[1] for module in graph.modules if module.count(".") >= 1}
    uses: dict[str, set[str]] = defaultdict(set)
    for module, room in room_of.items():
        for imported in graph.find_modules_directly_imported_by(module):
            if (other := room_of.get(imported)) is not None and other != room:
                uses[room].add(other)
    rooms = sorted({room for room in room_of.values() if room != "__main__"})
    reach = {room: _reachable(room, uses) for room in rooms}
    boxes = [f"    {room}" for room in rooms]
    arrows = [
        f"    {room} --> {other}"
        for room in rooms
        for other in sorted(uses[room])
        if other in rooms and not any(other in reach[between] for between in uses[room] - {other})
    ]
    return "\n".join(["```mermaid", "flowchart TD", *boxes, *arrows, "```", ""])


def _reachable(room: str, uses: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = list(uses[room])
    while waiting:
        other = waiting.pop()
        if other not in seen:
            seen.add(other)
            waiting += uses[other]
    return seen


def main() -> int:
    """Draw or check the picture; return the exit code."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    drawn = f"{before}{BEGIN}{picture()}{END}{after}"
    if "--check" in sys.argv:
        if drawn != text:
            print("The picture of the rooms is not today's: uv run python docs/rooms.py", file=sys.stderr)
        return int(drawn != text)
    PAGE.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
