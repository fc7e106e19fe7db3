"""`refseg publish`: from a training to a model folder that others can load and check."""
