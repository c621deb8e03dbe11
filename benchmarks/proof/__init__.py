"""What must always hold, tried many times."""
