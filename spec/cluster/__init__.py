"""What talks to the Kubernetes API: waiting for a server or a training job, preflight, clean-up, a run's last word.

Nothing here creates anything; Argo and the training operator do that from the manifests.
"""
