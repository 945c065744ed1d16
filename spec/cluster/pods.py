"""Reading a pod's status: why it does not start, how it ended, and its log from where one left off."""

from spec.cluster.api import Cluster, Json

# Reasons that time does not mend: a wrong name or reference. Image pulls get a while, since registries fail too, and so
# do runtimes, which fail on a busy node.
_NEVER = {"InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError"}
_PULLING = {"ErrImagePull", "ImagePullBackOff", "CreateContainerError", "RunContainerError"}


def containers(pod: Json) -> list[Json]:
    """The status of every container, init containers first."""
    status = pod.get("status") or {}
    return (status.get("initContainerStatuses") or []) + (status.get("containerStatuses") or [])


def cannot_start(pod: Json, *, pulls_count: bool) -> str | None:
    """Why a container of this pod will never start, or None. Failing image pulls count only if `pulls_count`."""
    for container in containers(pod):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _NEVER or (pulls_count and waiting.get("reason") in _PULLING):
            return f"{name(pod)}: {waiting['reason']}: {waiting.get('message', container.get('image', ''))}"
    return None


def not_scheduled(pod: Json) -> str | None:
    """The scheduler's own words on a pod that it has no node for, or None."""
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{name(pod)}: {condition.get('message') or condition.get('reason', 'not scheduled')}"
    return None


def endings(pod: Json) -> list[tuple[int, str]]:
    """(exit code, what is known about it) of each container that ended, the last run of a restarted one included."""
    found = []
    for container in containers(pod):
        for ended in ends(container)[:1]:
            words = [ended.get("reason", ""), last_words(ended.get("message") or "")]
            found.append((ended["exitCode"], f"{name(pod)}: " + ": ".join(word for word in words if word)))
    return found


def ends(container: Json) -> list[Json]:
    """How a container ended, by its status: this run of it, if it has, and the one before, if there was one."""
    known = [(container.get(when) or {}).get("terminated") for when in ("state", "lastState")]
    return [end for end in known if end]


def last_words(log: str) -> str:
    """The last `error: ...` of a log's end, without the prefix, or its last line; "" where there is none."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines
    return told[-1] if told else ""


def is_over(pod: Json) -> bool:
    """Whether none of its containers will run again."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def name(pod: Json) -> str:
    return pod["metadata"]["name"]


class LogFollower:
    """Prints a container's log piece by piece. Polls: a stream that breaks in silence would look like a hung job.

    A new one (a watcher started again) begins with the last lines there are.
    """

    def __init__(self, cluster: Cluster, container: str):
        self._cluster = cluster
        self._container = container
        self._last = ""  # time stamp of the last line printed; RFC 3339 of equal length sorts as text

    def print_new(self, pod: str, *, seconds: int) -> None:
        """Print the lines since the last call, which was at most `seconds` ago."""
        if self._last:
            text = self._cluster.log(pod, self._container, since_seconds=seconds + 5)
        else:
            text = self._cluster.log(pod, self._container, tail_lines=100)
        for line in (text or "").splitlines():
            stamp, _, words = line.partition(" ")
            if stamp > self._last:
                self._last = stamp
                print(words, flush=True)
