"""
`python -m httpmw` is the command `httpmw`.
"""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
