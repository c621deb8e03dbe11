"""PROFILE=full as processes: the demo, faults, monitoring."""
