"""Bank marketing: will the client subscribe a term deposit after this telephone call?

Vocabularies and bounds are those of the data set's documentation (Moro, Cortez and Rita, Decision
Support Systems 62:22-31, 2014, doi:10.1016/j.dss.2014.03.001; UCI 222, CC BY 4.0). The call's duration
is known only after the call and is never a feature.
"""

from pipelines.fields import Categorical, Fields, Numeric

FIELDS = Fields(
    case="bank",
    label="subscribed",
    about="will the client subscribe a term deposit after this call?",
    fields=(
        Categorical(
            "job",
            (
                "admin.",
                "blue-collar",
                "entrepreneur",
                "housemaid",
                "management",
                "retired",
                "self-employed",
                "services",
                "student",
                "technician",
                "unemployed",
                "unknown",
            ),
            "type of job",
        ),
        Categorical("marital", ("divorced", "married", "single", "unknown"), "marital status"),
        Categorical(
            "education",
            (
                "basic.4y",
                "basic.6y",
                "basic.9y",
                "high.school",
                "illiterate",
                "professional.course",
                "university.degree",
                "unknown",
            ),
            "highest education",
        ),
        Categorical("credit_default", ("no", "yes", "unknown"), "has credit in default?"),
        Categorical("housing", ("no", "yes", "unknown"), "has a housing loan?"),
        Categorical("loan", ("no", "yes", "unknown"), "has a personal loan?"),
        Categorical("contact", ("cellular", "telephone"), "how the client is called"),
        Categorical(
            "month",
            ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
            "month of the call",
        ),
        Categorical("day_of_week", ("mon", "tue", "wed", "thu", "fri"), "weekday of the call"),
        Categorical("poutcome", ("failure", "nonexistent", "success"), "outcome of the previous campaign"),
        Numeric("age", 15, 110, integer=True, about="years"),
        Numeric("campaign", 1, 1000, integer=True, about="calls to this client in this campaign, this one included"),
        Numeric(
            "pdays", 0, 999, integer=True, about="days since the last call of a previous campaign; 999: never called"
        ),
        Numeric("previous", 0, 1000, integer=True, about="calls to this client before this campaign"),
        Numeric("emp_var_rate", -20, 20, about="employment variation rate, quarterly, percent"),
        Numeric("cons_price_idx", 50, 200, about="consumer price index, monthly"),
        Numeric("cons_conf_idx", -200, 200, about="consumer confidence index, monthly"),
        Numeric("euribor3m", -5, 25, about="three-month Euribor, daily, percent"),
        Numeric("nr_employed", 0, 100_000, about="number of employees, quarterly, thousands"),
    ),
)
