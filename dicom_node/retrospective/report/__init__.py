"""What came of a run: counts and scores, the flagged studies, and with the truth at hand the site's own validation."""
