"""One drift run, as the value that all of its questions are asked of."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from pipelines.contracts import Arrived, Release, Window
from pipelines.drift.profile.counts import Profile
from pipelines.drift_report import Headroom
from pipelines.fields import Fields, Target
from pipelines.params import Params


@dataclass(frozen=True)
class Run:
    """The window that is judged at ``as_of``, and the champion that it is judged for.

    ``current`` counts the window's rows, ``reference`` those that the champion learned from; ``unread`` rows of the
    window lie where they cannot be read yet. ``served_since`` is the event time of the first row that the case ever
    served (None: not known). ``usual`` is how many rows a day there were when the reference's rows came (None: not
    recorded). ``headroom`` is what a probe found of this window's labels. ``arrived`` says what came in the window,
    where some of it was refused.
    """

    params: Params
    fields: Fields
    as_of: datetime
    window: Window
    champion: Release
    reference: Profile
    current: Profile
    unread: int = 0
    served_since: datetime | None = None
    usual: float | None = None
    headroom: Headroom = field(default_factory=Headroom)
    arrived: Arrived = field(default_factory=Arrived)

    @property
    def version(self) -> int:
        """The champion's."""
        return self.champion.champion

    @property
    def target(self) -> Target:
        """What the case predicts."""
        return self.fields.target
