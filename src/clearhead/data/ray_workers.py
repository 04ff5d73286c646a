"""Run work on a Ray cluster and return the results in order, as `workers` does with processes.

A task whose worker or machine dies is run again elsewhere. As the work is a pure function of its arguments, the results
are the same.
"""

from __future__ import annotations

import pickle
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from clearhead.errors import ClearheadError, InputError, TrainingError

_T = TypeVar("_T")

LOCAL = "local"
_RETRIES = 5
_IN_PROGRESS = 2  # tasks for each core of the cluster: a slow consumer slows down the work, and memory stays bounded

_works: dict[str, Callable[..., Any]] = {}  # in a worker: functions by key, so that each is unpickled once


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A Ray cluster.

    Attributes:
        address: the address of the head node, as `ray.init` takes it; "local" starts one on this machine.
    """

    address: str = LOCAL


def map_on_ray(
    work: Callable[..., Any], items: Iterable[_T], arguments: Callable[[_T], tuple[Any, ...]], cluster: RayCluster
) -> Iterator[tuple[_T, Any]]:
    """Yield each item with the result of the work on it, in the order of the items.

    Args:
        work: the function; it is sent to each worker once, by pickle. The package must be installed there.
        items: consumed while the work proceeds.
        arguments: maps an item to the function's arguments, which are sent by pickle.
        cluster: where the work is done.

    Raises:
        ClearheadError: if the work raises it, in the order of the items.
        InputError: if Ray is not installed, or the cluster cannot be reached.
        TrainingError: if a task fails again and again.
    """
    ray = _connected(cluster)
    key, stored = uuid.uuid4().hex, [ray.put(pickle.dumps(work))]  # in a list, Ray passes the reference on
    task = ray.remote(_call).options(num_cpus=1, max_retries=_RETRIES)
    most = _IN_PROGRESS * max(1, int(ray.cluster_resources().get("CPU", 1)))
    pending: deque[tuple[_T, Any]] = deque()
    try:
        for item in items:
            pending.append((item, task.remote(key, stored, arguments(item))))
            if len(pending) >= most:
                first, reference = pending.popleft()
                yield first, _result(ray, reference)
        while pending:
            first, reference = pending.popleft()
            yield first, _result(ray, reference)
    finally:
        for _, reference in pending:
            ray.cancel(reference, force=True)


def _call(key: str, stored: list[Any], arguments: tuple[Any, ...]) -> Any:
    """Run in a worker: return the result of the work, or the error that it raised."""
    if key not in _works:
        import ray

        _works[key] = pickle.loads(ray.get(stored[0]))
    try:
        return _works[key](*arguments)
    except (ClearheadError, OSError, MemoryError) as error:
        return error


def _result(ray: Any, reference: Any) -> Any:
    try:
        result = ray.get(reference)
    except ray.exceptions.RayError as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"a task of the Ray cluster failed {_RETRIES + 1} times ({first}); run the same command again to resume."
        ) from None
    if isinstance(result, Exception):
        raise result
    return result


def _connected(cluster: RayCluster) -> Any:
    try:
        import ray
    except ImportError:
        raise InputError('--ray needs Ray; `pip install "clearhead[ray]"` installs it.') from None
    if not ray.is_initialized():
        address = None if cluster.address == LOCAL else cluster.address
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
        except (ConnectionError, ValueError, RuntimeError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"the Ray cluster {cluster.address!r} cannot be reached ({first}); give the address of its head, or "
                "local."
            ) from None
    return ray
