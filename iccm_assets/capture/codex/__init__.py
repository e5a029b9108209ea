"""Read the rollouts of the Codex command line."""
