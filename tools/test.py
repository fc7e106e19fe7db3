"""`refseg test` under the name that users of mmdet and mmseg know."""

import sys

from refseg.cli import main
from refseg.compat import exit_launched

if __name__ == "__main__":
    exit_launched(main(["test", *sys.argv[1:]]))
