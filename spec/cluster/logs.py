"""Logs of trainers and servers, kept in the run: these are no pods of Argo's, which archives the others."""

import time
from threading import Thread

from spec.cluster import pods
from spec.cluster.api import Cluster, Json
from spec.errors import SpecError
from spec.storage import open_store

FOLDER = "logs"
LINES = 100_000  # of each container at most: one that trains for a week says more
EVERY = 60.0  # seconds between two copies of what still runs: what a lost node takes along at most
LONGEST = 330.0  # seconds until a pod that is told to end has done so: `terminationGracePeriodSeconds`, and some


class Keeper:
    """Writes what each pod of a selector says to RUN/logs/POD.log; what was before a restart to POD.before.log.

    A deleted pod takes its log along, so one that is about to go is read to its last words, in a thread of its own. A
    log is no reason to fail: what cannot be kept is said.
    """

    def __init__(self, cluster: Cluster, run: str, selector: str, container: str):
        self._cluster, self._store = cluster, open_store(run)
        self._selector, self._container = selector, container
        self._whole: set[str] = set()  # pods, by uid, whose last words are kept or waited for
        self._readers: list[Thread] = []
        self._kept = time.monotonic()

    def saw(self, found: list[Json]) -> None:
        """These pods are there, and are to be for long. Another may take the name of one that is deleted meanwhile."""
        for pod in found:
            if "deletionTimestamp" in pod["metadata"]:
                self._read_on(pod, f"{pods.name(pod)}.{_uid(pod)[:8]}")
        if time.monotonic() - self._kept >= EVERY:
            self.keep()

    def end(self) -> None:
        """The pods have ended or will do so soon: what they have said is kept now, the rest as they say it."""
        for pod in self.keep():
            self._read_on(pod, pods.name(pod))

    def keep(self) -> list[Json]:
        """Keep what the pods that there are have said until now; returns them."""
        self._kept = time.monotonic()
        try:
            found = self._cluster.pods(self._selector)
        except SpecError as error:
            print(f"logs of {self._selector} are not kept: {error}", flush=True)
            return []
        for pod in found:
            if _uid(pod) not in self._whole:
                self._keep(pod)
        return found

    def wait(self, seconds: float = LONGEST) -> None:
        """Until the last words are kept, but for no longer than that."""
        deadline = time.monotonic() + seconds
        for reader in self._readers:
            reader.join(max(0.0, deadline - time.monotonic()))

    def _keep(self, pod: Json) -> None:
        name = pods.name(pod)
        restarted = any(its["name"] == self._container and its["restartCount"] for its in pods.containers(pod))
        try:
            if restarted:
                self._write(name, f"{name}.before", before_restart=True)
            self._write(name, name)
        except (SpecError, OSError) as error:  # a pod that is gone too
            print(f"log of {name} is not kept: {error}", flush=True)
        else:
            if pods.is_over(pod):
                self._whole.add(_uid(pod))

    def _read_on(self, pod: Json, key: str) -> None:
        if _uid(pod) not in self._whole:
            self._whole.add(_uid(pod))
            self._readers.append(Thread(target=self._read_to_end, args=(pods.name(pod), key), daemon=True))
            self._readers[-1].start()

    def _read_to_end(self, name: str, key: str, tries: int = 6, pause: float = 5.0) -> None:
        for left in reversed(range(tries)):  # half a minute for an API server or a store that comes back
            try:
                self._write(name, key, to_its_end=LONGEST)
                break
            except (SpecError, OSError) as error:
                if left == 0 or isinstance(error, FileNotFoundError):
                    print(f"log of {name} is not kept to its end: {error}", flush=True)
                    break
            time.sleep(pause)

    def _write(self, pod: str, key: str, *, before_restart: bool = False, to_its_end: float = 0.0) -> None:
        text = self._cluster.log(
            pod, self._container, tail_lines=LINES, before_restart=before_restart, to_its_end=to_its_end
        )
        self._store.write(f"{FOLDER}/{key}.log", text.encode())  # an empty one too: it said nothing


def _uid(pod: Json) -> str:
    return pod["metadata"]["uid"]
