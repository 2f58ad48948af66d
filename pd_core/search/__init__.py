"""Search for parameters of teacher and student: `promptkd tune`."""
