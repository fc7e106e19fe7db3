"""Run the `refseg` command with `python -m refseg.cli`."""

import sys

from refseg.cli.main import main

sys.exit(main())
