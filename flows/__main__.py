"""`python -m flows` is `onnx-audit`."""

from flows.cli import main

main()
