"""The sprite world: clips whose true edit is known."""
