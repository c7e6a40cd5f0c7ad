"""
The function, and the file around it, anew.
"""
