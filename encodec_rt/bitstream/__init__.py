"""Codes as bytes: packets for a live link, `.ecdc` and `.encodec` files."""
