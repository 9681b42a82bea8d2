"""What any voice path needs, whatever carries its packets."""
