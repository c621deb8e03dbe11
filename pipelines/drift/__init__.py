"""Profiles, statistics and the retrain policy: numpy, scipy, pyarrow."""
