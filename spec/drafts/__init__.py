"""From a checkpoint to a draft that SGLang serves, and the evidence that it is a good one."""
