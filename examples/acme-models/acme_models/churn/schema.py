"""What a row of churn has, and what is predicted.

Guessed from customers.csv: 3,000 rows, signed_at from 2026-01-02 to 2026-06-30. Read it through, and change what you
know better.
"""

from perennial import Binary, Categorical, Fields, Numeric

FIELDS = Fields(
    case="churn",
    # the label: '1' is 1, in 60.2% of 3,000 rows with a label of 3,000
    label="churned",
    target=Binary(),
    fields=(
        # 18 to 89 in 3,000 rows
        Numeric("age", 0, 500, integer=True),
        # 0 to 9 in 3,000 rows
        Numeric("calls", 0, 50, integer=True),
        # 3 values in 3,000 rows; new ones count as other
        Categorical("plan", ("basic", "plus", "pro"), other=True),
    ),
)
