"""The suite, laid out as the code is: a folder for each room, and here what they share."""

from pathlib import Path
from typing import Final

# Where the project is.
ROOT: Final = Path(__file__).parent.parent
