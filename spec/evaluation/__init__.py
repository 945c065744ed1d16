"""What a draft is worth: measured without a server, and on one with it and without it."""
