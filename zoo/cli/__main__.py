"""`python -m zoo.cli`: the command `zoo` where no script is installed."""

import sys

from zoo.cli.main import main

sys.exit(main())
