"""Train, evaluate and export the published methods."""
