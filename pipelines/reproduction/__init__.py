"""Train a registered version again from its record, and say what differs if it does not come out the same."""
