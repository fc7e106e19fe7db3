"""Predict with a model; `tools/dist_predict.sh` starts it in several processes. `--help` shows the options."""

import sys

from refseg.cli.main import main
from refseg.compat import exit_launched

if __name__ == "__main__":
    exit_launched(main(["predict", *sys.argv[1:]]))
