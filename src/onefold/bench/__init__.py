"""Evidence: what is compared with what, on the same noise."""
