"""ProteinMPNN made fast, with a measured proof attached to every figure."""
