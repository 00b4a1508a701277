"""Which worker gets what, under `pytest -n`: whole cases, and to the first one those that import most."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

FEW = 24  # cases that take no longer than what they import
AHEAD = 6  # checks that a worker has before it, so that it need not wait for the next case


class ByCase(LoadScopeScheduling):
    """All checks of a case to one worker; a node id in another file than the `suite`'s is on its own.

    The first worker begins with the cases that are `importing`, and the others begin at the other end: they
    may never come to import what takes seconds.
    """

    def __init__(self, config: Any, log: Any, suite: str, importing: Collection[str]) -> None:
        super().__init__(config, log)
        self._in_suite, self._importing, self._in_order = f"/{suite}::", importing, False

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.rpartition(":")[0] if self._in_suite in nodeid else nodeid

    def _imports(self, scope: str) -> bool:
        return scope.rpartition("::")[2] in self._importing

    def _assign_work_unit(self, node: Any) -> None:
        if not self._in_order:
            for scope in [scope for scope in self.workqueue if not self._imports(scope)]:
                self.workqueue.move_to_end(scope)
            self._in_order = True
        if node is not self.nodes[0]:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)

    def _reschedule(self, node: Any) -> None:
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) < AHEAD:
            if self._has_no_more_for(node):
                node.shutdown()
            else:
                self._assign_work_unit(node)

    def _has_no_more_for(self, node: Any) -> bool:
        """Whether nothing is left, or no more than the first worker does sooner than another can begin."""
        if not self.workqueue:
            return True
        first, last = self.nodes[0], next(reversed(self.workqueue))
        few = len(self.workqueue) <= FEW and self._imports(last)
        return few and node is not first and not first.shutting_down

    # Without these two, the work per check grows with the number of checks, some 50,000.

    def add_node_collection(self, node: Any, collection: Sequence[str]) -> None:
        """Take up what a worker has collected."""
        super().add_node_collection(node, collection)
        if node in self.registered_collections:
            self.registered_collections[node] = _Ids(collection)

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        """Forget a case once all of its checks are done."""
        super().mark_test_complete(node, item_index, duration)
        scope = self._split_scope(self.registered_collections[node][item_index])
        if all(self.assigned_work[node][scope].values()):
            del self.assigned_work[node][scope]

    def remove_node(self, node: Any) -> str | None:
        """The check that has killed a worker. Its case would kill the next one too and is not handed on."""
        units = self.assigned_work[node].values()
        died: dict[str, bool] = next((unit for unit in units if not all(unit.values())), {})
        check = next((nodeid for nodeid, done in died.items() if not done), None)
        died.update(dict.fromkeys(died, True))
        super().remove_node(node)
        return check


class _Ids(list[str]):
    """Node ids that know their places."""

    def __init__(self, ids: Sequence[str]) -> None:
        super().__init__(ids)
        self._places = {nodeid: place for place, nodeid in enumerate(ids)}

    def index(self, nodeid: str, *_: Any) -> int:
        """Where an id is, at once."""
        return self._places[nodeid]
