"""Commands of `refseg data`: layout, check, leaks, browse, import, export, split, merge, and stats."""
