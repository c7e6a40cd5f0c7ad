"""
The code that pages of the documentation include; the test suite runs all of it.
"""
