"""
A middleware, run by hand and by a fake server.
"""
