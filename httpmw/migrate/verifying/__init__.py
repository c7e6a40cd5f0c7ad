"""
Old and new version side by side: `httpmw migrate --verify`.
"""
