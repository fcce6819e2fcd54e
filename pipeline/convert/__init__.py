"""From the submitted graph to a differentiable copy, and from new weights back into the submitted graph."""
