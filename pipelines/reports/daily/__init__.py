"""The daily page of a case: one self-contained HTML file.

It says whether the model got worse, why, and what was done. ``gather`` collects what it shows as one :class:`View`,
``page`` renders that.
"""

from pipelines.reports.daily.gather import DRAWN, gather, links
from pipelines.reports.daily.render import page
from pipelines.reports.daily.view import Links, View
from pipelines.reports.daily.words import headline

__all__ = ["DRAWN", "Links", "View", "gather", "headline", "links", "page"]
