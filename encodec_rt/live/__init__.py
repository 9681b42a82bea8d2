"""Microphone and speaker: raw streams with separate clocks, and the codec between them."""
