"""Adapters for voice agent frameworks: their audio as codes on the way to the caller and back."""
