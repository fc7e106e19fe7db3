"""`refseg export`: models as ONNX graphs, with proof that they answer alike."""
