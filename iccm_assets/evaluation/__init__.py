"""Evaluate a candidate against production: paired evaluation, confidence bounds, quality gate."""
