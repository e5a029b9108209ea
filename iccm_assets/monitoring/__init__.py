"""Measure the quality of the served production version against its baseline, and detect degradation."""
