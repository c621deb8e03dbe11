"""What answers requests: Triton's backend and the gateway."""
