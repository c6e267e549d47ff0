"""`python -m nystromformer`, which is also what torchrun and Accelerate's launcher start."""

import sys

from nystromformer.cli import main

if __name__ == "__main__":
    sys.exit(main())
