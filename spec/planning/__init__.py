"""What a training run needs before anything of it exists: memory, time and disk, from the config and the target's."""
