"""Trainings in processes of their own: starting, finding and watching them through the files in their folder.

Nothing here loads a model library.
"""
