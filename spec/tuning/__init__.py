"""At which loads a draft is worth serving, and with how many drafts a round: measured, beside the server without it."""
