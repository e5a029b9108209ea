"""Decide when a candidate is trained: triggers, example selection, queue, scheduling and recovery."""
