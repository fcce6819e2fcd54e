"""Find, repair, prove and gate backdoors in third-party ONNX image classifiers: the library."""
