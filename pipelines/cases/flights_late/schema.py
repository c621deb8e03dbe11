"""Late flights: is a flight from New York more than 15 minutes late, or does it never arrive?

The rows are those of the case `flights`, with its fields.
"""

from pipelines.cases.flights.schema import FIELDS as FLIGHTS
from pipelines.fields import Fields

FIELDS = Fields(
    case="flights_late",
    label="late",
    about="is the flight more than 15 minutes late, cancelled or diverted?",
    fields=FLIGHTS.fields,
)
