"""Vulnerability triage by text and fields: which team owns this report, by its text and what is known beside it?

The reports are those of the case `triage`. Beside the text there is what is known when a report is published: who
assigned its number, when it was published, and how old its number is. Severity scores, products and references are
assigned at or after the analysis whose outcome is to be predicted.
"""

from pipelines.cases.triage.schema import FIELDS as TRIAGE
from pipelines.fields import Categorical, Fields, Moment, Numeric

ASSIGNERS = (
    "adobe.com",
    "apple.com",
    "cert.org",
    "cisco.com",
    "debian.org",
    "dell.com",
    "flexerasoftware.com",
    "google.com",
    "hp.com",
    "hq.dhs.gov",
    "jpcert.or.jp",
    "microsoft.com",
    "mitre.org",
    "mozilla.org",
    "oracle.com",
    "redhat.com",
    "symantec.com",
    "ubuntu.com",
    "us.ibm.com",
)
"""Those of the reports of 2013; later ones count as other."""
FIELDS = Fields(
    case="triage_fields",
    label=TRIAGE.label,
    about=TRIAGE.about,
    target=TRIAGE.target,
    fields=(
        *TRIAGE.fields,
        Categorical("assigner", ASSIGNERS, "the organisation that assigned the number", missing=True, other=True),
        Moment("published", ("hour", "weekday"), "when it was published: some vendors publish on days of their own"),
        Numeric("waited", integer=True, about="years from that in its number to that of its publication"),
    ),
)
