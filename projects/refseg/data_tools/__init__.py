"""`refseg data`: what is there, whether it is right, what leaks, what a model sees, and how one's own data begin."""
