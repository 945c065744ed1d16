"""Published versions of drafts and answers, in a directory, in S3 or on a hub."""
