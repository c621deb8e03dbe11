"""The case of vulnerability triage by text and fields: the reports of `triage`, with what is known beside them."""
