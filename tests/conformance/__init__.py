"""What every kind of field holds with every kind of target, from what is delivered to what is served and counted."""
