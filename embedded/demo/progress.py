"""What the terminal shows while the demo runs: the phases with their budgets, and a line per tick."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

BUDGET = {
    "start": 40,
    "first champion": 20,
    "traffic": 45,
    "drift": 60,
    "training": 90,
    "score": 20,
    "release": 60,
    "report": 10,
    "stop": 15,
}
"""Seconds that each phase may take on an idle two-core machine; together the six minutes of the demo."""
TEXTS = BUDGET | {"first champion": 150, "traffic": 130, "drift": 90, "training": 360, "score": 60}
"""The same where a transformer is trained and serves: a quarter of an hour."""


@dataclass
class Progress:
    """Seconds spent per phase, shown live on a terminal and as plain lines elsewhere."""

    console: Console = field(default_factory=Console)
    seconds: dict[str, float] = field(default_factory=dict)
    current: str = ""
    headline: str = ""
    budget: dict[str, int] = field(default_factory=lambda: BUDGET)
    _live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the table of phases on the screen while the block runs."""
        if not self.console.is_terminal:
            yield
            return
        with Live(get_renderable=self._table, console=self.console, refresh_per_second=4) as self._live:
            yield
        self._live = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's wall time to phase ``name``."""
        outer = self.current
        self.current = name
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begun
            self.current = outer

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.console.print(line, highlight=False, soft_wrap=True)

    def _table(self) -> Group:
        table = Table(box=None, padding=(0, 2), header_style="dim")
        table.add_column("phase")
        table.add_column("seconds", justify="right")
        table.add_column("budget", justify="right", style="dim")
        table.add_column("")
        for name, budget in self.budget.items():
            spent = self.seconds.get(name, 0.0)
            colour = "white"
            if name == self.current:
                colour = "cyan"
            elif spent > budget:
                colour = "red"
            bar = "█" * min(30, round(30 * spent / budget))
            table.add_row(f"[{colour}]{name}[/]", f"{spent:.0f}", str(budget), f"[{colour}]{bar}[/]")
        return Group(table, self.headline)
