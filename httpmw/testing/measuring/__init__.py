"""
What a middleware costs.
"""
