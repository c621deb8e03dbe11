"""The library behind Perennial's loop. It knows no scheduler: every step is a plain function."""
