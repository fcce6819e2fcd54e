"""What a model file does on images, with onnxruntime: the only engine whose word counts."""
