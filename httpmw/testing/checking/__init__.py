"""
The checker: who broke which rule of ASGI.
"""
