"""Simulated developers: who they are, what they ask, and how they use the gateway."""
