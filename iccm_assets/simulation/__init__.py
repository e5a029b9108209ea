"""The embedded world: requirements language, simulated developers, reconstructors, the packaged model."""
