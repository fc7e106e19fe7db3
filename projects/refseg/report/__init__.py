"""HTML pages: the report of a run, comparisons, curves and contact sheets."""
