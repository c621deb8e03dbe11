"""The command line: one subcommand per step."""
