"""Reference models with known backdoors: architectures, poisoning, training recipes, and the small ONNX files that ship."""
