"""BIG-bench 1.0.0 [Srivastava et al. 2022]: CIFAR-10's test images and Natural Instructions, among much else."""

PACKAGE = "bigbench==1.0.0"
"""There is no wheel of it, only a source archive of 358 MB."""

ARCHIVE = "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2"
"""That archive's SHA-256."""
