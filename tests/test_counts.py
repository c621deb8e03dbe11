"""The counts that `make check` prints."""

from __future__ import annotations

from pathlib import Path

from tests.counts import count, walk

SOURCE = '''
from typing import Any

a, b = 1, 2
c, d = divmod(a, b)
grade = "one" if a == 1 else "two" if a == 2 else "more"  # not a line of its own
# a line of its own


def facts() -> dict[str, Any]:
    """Nothing."""
    return {}
'''


def test_each_habit_is_counted_once() -> None:
    """Two assignments on one line count, the unpacking of a call does not; a conditional in another one is chained."""
    counted = count(SOURCE)
    assert counted.tuples == 1
    assert counted.conditionals == 2
    assert counted.chained == 1
    assert counted.loose == 1
    assert counted.comments == 1
    assert counted.lines == 8


def test_a_value_is_followed_from_room_to_room(tmp_path: Path) -> None:
    """The way of as_of goes into each function that is given it, also inside of an object, and back again."""
    files = {
        "steps/drift.py": (
            "from pipelines import ledger, storage\n"
            "from pipelines.drift.windows import Look, read\n"
            "def run(settings, as_of):\n"
            "    champion = ledger.champion_before(settings, as_of)\n"
            "    storage.find(settings, champion)\n"
            "    look = Look(settings, as_of)\n"
            "    return read(look)\n"
        ),
        "ledger/__init__.py": "from pipelines.ledger.rows import champion_before\n",
        "ledger/rows.py": "def champion_before(settings, as_of):\n    return as_of\n",
        "storage.py": "def find(settings, champion):\n    return champion\n",
        "drift/windows.py": (
            "from pipelines.ledger.rows import champion_before\n"
            "def read(look):\n"
            "    return champion_before(look.settings, look.as_of)\n"
        ),
    }
    for name, text in files.items():
        path = tmp_path / "pipelines" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert walk(tmp_path) == ["steps", "ledger", "steps", "drift", "steps"]
