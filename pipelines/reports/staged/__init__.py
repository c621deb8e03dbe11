"""The page of one rollout: its stages, what the guard saw, whom the challenger answered, and its experiment."""

from pipelines.reports.staged.render import page
from pipelines.reports.staged.view import Arm, Compared, Estimate, Event, Guarded, Side, Sign, View
from pipelines.reports.staged.words import headline

__all__ = ["Arm", "Compared", "Estimate", "Event", "Guarded", "Side", "Sign", "View", "headline", "page"]
