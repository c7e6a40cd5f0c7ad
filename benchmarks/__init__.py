"""
What middleware costs: `python -m benchmarks`, and `benchmarks/README.md`.
"""
