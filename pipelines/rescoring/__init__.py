"""Logged rows, scored again: what was answered must come out, and what another version would have answered is shown."""
