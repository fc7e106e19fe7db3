"""Makes the environment that `make` uses and prints its Python: `python tools/dev/setup_env.py`.

Standard library only. This file stays readable for old Pythons, so that they get a sentence instead of a SyntaxError.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036
    sys.stderr.write(
        "refseg needs Python 3.10, 3.11 or 3.12; this is " + sys.version.split()[0] + " (" + sys.executable + ").\n"
        "Name another one: make PYTHON=python3.11 ...\n"
    )
    sys.exit(2)

from _env_build import main

if __name__ == "__main__":
    sys.exit(main())
