"""Starts, watches and stops the local processes of `make up` and `make demo`."""
