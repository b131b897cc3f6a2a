"""The distribution of test files to the workers of a run, which goes on after the crash
of a worker.
"""

from xdist.scheduler import LoadFileScheduling


class ContinuedScheduling(LoadFileScheduling):
    """Runs the tests that a crashed worker left, with the exception of the test that
    crashed.

    pytest-xdist hung after a crash for two reasons. It distributed the finished files
    of the crashed worker again, one per finished test, so tests at the end of the run
    were never sent. And a worker starts its last test only when it knows what follows,
    but the worker that replaced the crashed one received a single file.
    """

    def remove_node(self, node):
        files = self.assigned_work[node]
        left = []
        for tests in files.values():
            left += [(tests, test) for test, ended in tests.items() if not ended]
        if left:
            tests, crashed = left[0]
            tests[crashed] = True
        for file in [file for file, tests in files.items() if all(tests.values())]:
            del files[file]
        super().remove_node(node)
        self._fill()
        return crashed if left else None

    def schedule(self):
        super().schedule()
        self._fill()

    def _fill(self):
        """Send files to each worker until it knows what follows its next two tests."""
        for node in self.nodes:
            while not node.shutting_down and self._pending_of(self.assigned_work[node]) <= 2:
                self._reschedule(node)
