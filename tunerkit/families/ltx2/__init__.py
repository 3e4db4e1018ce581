"""LTX-2: joint video and sound."""
