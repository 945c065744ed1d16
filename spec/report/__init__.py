"""What a run says of its draft to people: the model card, the report's page, and the command that serves it."""
