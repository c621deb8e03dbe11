"""The loop as data: what a step is, which steps there are and in what order, and the one way to run one."""
