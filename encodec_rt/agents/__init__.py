"""Glue for frameworks of voice agents: their audio as codes on the way to the caller and back."""
