"""Counterfactual probes: change one thing in a phrase, and see whether the answer changes with it."""
