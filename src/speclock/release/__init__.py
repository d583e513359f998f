"""Ship a locked model: the key that unlocks it, the manifest that says what it is, and what a copy still carries."""
