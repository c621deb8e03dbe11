"""The case of late flights: those of the case `flights`, and the question whether they are late."""
