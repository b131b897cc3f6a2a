"""Support code that the tests of several rooms share; `from tests.support.waiting import wait_until`."""
