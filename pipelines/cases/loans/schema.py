"""Loans: is the applicant creditworthy? A generated stream with known drift.

Fields after Agrawal, Imielinski and Swami, "Database Mining: A Performance Perspective", IEEE TKDE
5(6):914-925, 1993.
"""

from pipelines.fields import Categorical, Fields, Numeric

FIELDS = Fields(
    case="loans",
    label="granted",
    about="is the loan granted?",
    fields=(
        Categorical("education", ("none", "school", "college", "bachelor", "graduate"), "highest education"),
        Categorical("car", tuple(f"make_{make}" for make in range(1, 21)), "make of the car"),
        Categorical("zipcode", tuple(f"zip_{zipcode}" for zipcode in range(9)), "home district"),
        Numeric("salary", 0, 1_000_000, about="per year"),
        Numeric("commission", 0, 1_000_000, about="per year; 0 with a salary of 75,000 or more"),
        Numeric("age", 18, 100, integer=True, about="years"),
        Numeric("house_value", 0, 10_000_000, about="depends on the district"),
        Numeric("house_years", 0, 100, integer=True, about="years since the house was bought"),
        Numeric("amount", 0, 5_000_000, about="amount of the loan"),
    ),
)
