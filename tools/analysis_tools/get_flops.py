"""`refseg flops` under the name that users of mmdet and mmseg know."""

import sys

from refseg.cli import main

if __name__ == "__main__":
    sys.exit(main(["flops", *sys.argv[1:]]))
