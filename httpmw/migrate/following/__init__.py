"""
What a function does: where it runs the app, what its variables hold, how it ends.
"""
