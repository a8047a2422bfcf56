"""Metrics: a file each, plain functions of features and statistics. Their maths is float64 on the CPU."""
