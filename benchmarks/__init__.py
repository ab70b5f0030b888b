"""Ratios measured on one machine, side by side: nothing here is a test."""
