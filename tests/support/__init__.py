"""What the tests of several rooms share; `from support.waiting import wait_until`."""
