"""What a table's columns are, guessed with reasons, and a case written of it: pure functions on a polars frame.

Nothing is guessed in silence: each guess has its reason and its number of rows, what cannot be told is left out and
told, and what would make a case that seems to work and does not (a leak) is refused.
"""
