"""How far the inputs of a window lie from the reference, and since which day."""
