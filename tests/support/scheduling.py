"""The distribution of test files to the workers of a run, which goes on after the crash
of a worker.
"""

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController


class ContinuedScheduling(LoadFileScheduling):
    """Runs the tests that a crashed worker left, with the exception of the test that
    crashed.

    pytest-xdist gives one file to the worker that replaces the crashed worker, and
    waits. A worker starts its last test only when it knows what follows, so the run
    hung if a file had one test left. The crashed test ran again.
    """

    def remove_node(self, node: WorkerController) -> str | None:
        left = [
            (file, test)
            for file in self.assigned_work[node].values()
            for test, ended in file.items()
            if not ended
        ]
        if left:
            file, crashed = left[0]
            file[crashed] = True
        super().remove_node(node)
        return crashed if left else None

    def schedule(self) -> None:
        super().schedule()
        for node in self.nodes:
            while not node.shutting_down and self._pending_of(self.assigned_work[node]) <= 2:
                self._reschedule(node)
