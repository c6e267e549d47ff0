"""Pretraining: the loop and what surrounds it."""
