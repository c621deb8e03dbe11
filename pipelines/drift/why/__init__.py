"""What moved, since when and why: for people, nothing is decided by it."""
