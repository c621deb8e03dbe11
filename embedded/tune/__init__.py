"""`tune`: which `serving:` parameters suit a case on this machine, measured on a Triton of its own."""
