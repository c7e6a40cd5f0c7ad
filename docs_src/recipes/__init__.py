"""
One file for each recipe in docs/recipes, to be copied as it is.
"""
