"""History replayed under several retrain policies, with the project's own steps.

What each would have served, and at what cost.
"""
