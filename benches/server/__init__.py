"""The server under load; ``python -m benches.server`` runs it."""
