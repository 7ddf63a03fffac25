"""Measurements that take minutes to hours, each stored as JSON in baselines/, and their tables."""
