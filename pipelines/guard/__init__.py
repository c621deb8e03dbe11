"""Whether a rollout goes on: pure functions of what its two arms did, window by window."""
