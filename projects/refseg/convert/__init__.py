"""Convert published weights (`refseg convert`)."""
