"""The models of Acme."""
