"""The verbs of the loop, one file each: load -> call a room -> save."""
