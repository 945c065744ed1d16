"""The methods of drafting."""
