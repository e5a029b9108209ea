"""Progressive rollout of a candidate: observation, guardrails, decision, controller, deployment and rollback."""
