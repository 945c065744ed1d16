"""What talks to the Kubernetes API: waiting for a server or a training job, preflight, clean-up, the last word of a run.

Nothing here creates anything; Argo and the training operator do that from the manifests.
"""
