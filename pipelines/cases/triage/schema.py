"""Vulnerability triage: which team owns this report?

Reports are those of the National Vulnerability Database. Only the text is an input: severity scores, weakness
codes, products and references are assigned at or after the analysis whose outcome is to be predicted.
"""

from pipelines.fields import Fields, Text

FIELDS = Fields(
    case="triage",
    label="team",
    about="which team owns this vulnerability report?",
    fields=(Text("text", about="the report's description, in English"),),
    classes=(
        "access_control",
        "crypto_secrets",
        "data_injection",
        "file_path",
        "info_exposure",
        "input_validation",
        "memory_safety",
        "needs_analysis",
        "other_weakness",
        "resource_dos",
        "web_injection",
    ),
)
