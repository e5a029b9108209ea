"""Progressive rollout of a candidate: observation, guardrails, decision, deployment and rollback."""
