"""
The rules of ASGI, one function each.
"""
