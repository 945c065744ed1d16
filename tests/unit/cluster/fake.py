"""A cluster of plain objects, for what only reads and deletes."""

from typing import Any

Json = dict[str, Any]


class FakeCluster:
    """`spec.cluster.api.Cluster` over lists: objects by kind, pods, and containers' logs by pod."""

    def __init__(self, *, pods: list[Json] | None = None, **objects: list[Json]):
        self.objects, self._pods = objects, pods or []
        self.deleted: list[str] = []
        self.statuses: dict[str, Json] = {}

    def get(self, kind: str, name: str) -> Json:
        for item in self.objects.get(kind, []):
            if item["metadata"]["name"] == name:
                return item
        raise FileNotFoundError(f"{kind}/{name}")

    def find(self, kind: str, selector: str) -> list[Json]:
        if not selector:
            return list(self.objects.get(kind, []))
        label, _, value = selector.partition("=")
        labels = [(item, item["metadata"]["labels"].get(label)) for item in self.objects.get(kind, [])]
        return [item for item, found in labels if found is not None and value in ("", found)]

    def metadata(self, kind: str) -> list[Json]:
        return [item["metadata"] for item in self.objects.get(kind, [])]

    def delete(self, kind: str, name: str) -> None:
        self.deleted.append(f"{kind}/{name}")
        self.objects[kind] = [item for item in self.objects[kind] if item["metadata"]["name"] != name]

    def pods(self, selector: str) -> list[Json]:
        return self._pods

    def patch(self, kind: str, name: str, change: Json) -> Json:
        return _merge(self.get(kind, name), change)

    def set_pod_status(self, name: str, status: Json) -> None:
        self.statuses[name] = status

    def log(self, pod: str, container: str, **options: Any) -> str:
        return ""


def _merge(item: Json, change: Json) -> Json:
    for key, value in change.items():
        item[key] = _merge(item.setdefault(key, {}), value) if isinstance(value, dict) else value
    return item


def made(name: str, workflow: str) -> Json:
    return {"metadata": {"name": name, "labels": {"sgl-spec/workflow": workflow}}}
