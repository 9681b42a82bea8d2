"""Codes as bytes: packets for a live link, and `.ecdc` files."""
