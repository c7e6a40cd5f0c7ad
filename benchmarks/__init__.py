"""
What middleware costs: `python -m benchmarks.grid`.
"""
