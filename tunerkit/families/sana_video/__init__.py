"""Sana Video: text and image to video."""
