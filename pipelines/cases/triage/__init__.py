"""The triage case."""
