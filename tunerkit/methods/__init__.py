"""What makes training better: routing, alignment, rollout."""
