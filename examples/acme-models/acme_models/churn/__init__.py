"""The case churn."""
