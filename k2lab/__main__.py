"""`python -m k2lab`: the command line without its installed name."""

import sys

from k2lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
