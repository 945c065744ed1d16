"""From a dataset's prompts to the target's own answers, in a run's `answers/` folder.

    source, or mix of several -> rows -> ids -> selection -> regenerate (through chat) -> shards

Of a dataset only the system and user turns are used; what the target answers to them is asked of its server. Rows with
tools keep the dataset's whole history, and each answer in them is asked for by itself; of what a server was asked
(`requests/`) the history stands too, and only the answer after its last message is due.
No torch is imported here.
"""
