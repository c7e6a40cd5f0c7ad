"""
Middleware before and after a migration.
"""
