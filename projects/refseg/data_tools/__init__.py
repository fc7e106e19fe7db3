"""Commands of `refseg data`: layout, check, leaks, browse, and from-coco."""
