"""Impaired networks, simulated and real."""
