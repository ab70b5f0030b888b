"""What trained networks are worth: figures with intervals, honest tasks, doubts, the papers' numbers beside ours."""
