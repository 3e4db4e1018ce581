"""Kandinsky 5.0 Video: text and image to video, Lite and Pro."""
