"""A small VGG for CIFAR-10 with a Trojan square, and what is needed to audit it."""
