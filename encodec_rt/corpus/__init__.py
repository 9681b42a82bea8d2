"""Whole corpora of audio to codes and back."""
