"""Features that are computed of the declared fields, as polars expressions: none yet.

One more is declared in schema.py and given here (docs/cases.md#derived-features):

    derived=(Numeric("age_by_calls", missing=True),)            # in FIELDS, after fields
    FEATURES = {"age_by_calls": pl.col("age") / pl.col("calls")}

A profile.json that lies beside it has to have its scale: as long as nothing is trained, remove that file, and the first
training makes one.
"""

FEATURES = {}
