"""
A sample application with httpmw around it: `python -m examples.demo`.
"""
