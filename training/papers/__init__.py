"""One file per paper: its citation, its numbers, the recipe that is run here, and where the two differ."""
