"""The training loop: the home of torch."""
