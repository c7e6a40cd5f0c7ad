"""
What the files of a run say: names, classes, functions, registrations, and what belongs together.
"""
