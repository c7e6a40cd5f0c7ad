"""
Stores that workers share: whether one does what is asked of it.
"""
