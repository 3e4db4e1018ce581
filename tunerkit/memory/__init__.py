"""Means that save memory: weights that are offloaded while they are not needed."""
