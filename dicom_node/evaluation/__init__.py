"""Figures with their intervals, and plots: of papers and bundles in training, and of a site's own runs."""
