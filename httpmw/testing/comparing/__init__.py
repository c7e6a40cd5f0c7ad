"""
What a middleware changes, against the same apps without it.
"""
