"""Counterfactual probes: one thing of a phrase is changed, and so should be the answer."""
