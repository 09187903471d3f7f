"""Runs on the disk: their checkpoints, read without trust, and what is built from these."""
