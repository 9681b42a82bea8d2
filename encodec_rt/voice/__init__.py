"""What every voice path needs, whatever carries its packets."""
