"""From a dataset's prompts to the target's own answers, in a run's `answers/` folder.

    source -> rows -> ids -> regenerate (through chat) -> shards

Of a dataset only the system and user turns are used; what the target answers to them is asked of its server.
No torch is imported here.
"""
